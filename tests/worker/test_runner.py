"""The runner on a tiny random model: isolation of failures, reports, replay, and what it announces."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from protocol.errors import InternalError, OutOfMemory, StartupError
from protocol.options import ParallelOptions
from protocol.progress import Progress
from protocol.sampling import SamplingParams
from tests.worker.driver import GREEDY, Driver, Resident, quiet, worker_config, write_config
from worker.failures import RowsFailed
from worker.faults import faulty
from worker.runner import TorchRunner
from worker.step_budget import UNMEASURED_S, StepBudget
from worker.threads import physical_cores

PROMPT = [5, 9, 13, 17, 21, 25, 29]
SEEDED = SamplingParams(temperature=1.0, seed=11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["auto", "torch"])
def driver(model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Driver:
    """With the kernels in C, and with torch's."""
    config = worker_config(model, tmp_path, load_format="dummy")
    parallel = msgspec.structs.replace(config.parallel, cpu_kernels=request.param)
    return Driver(TorchRunner(msgspec.structs.replace(config, parallel=parallel), quiet))


def test_facts(model: Path, tmp_path: Path) -> None:
    phases: list[tuple[str, str, float | None]] = []
    config = worker_config(model, tmp_path, load_format="dummy", num_kv_blocks=50)
    runner = TorchRunner(config, lambda *phase: phases.append(phase))
    facts = runner.facts
    assert (facts.vocab_size, facts.block_size, facts.num_blocks, facts.max_model_len) == (96, 4, 50, 200)
    assert (facts.eos_token_ids, facts.max_num_seqs) == ((2, 3), 16)
    assert (facts.device, facts.dtype, facts.kv_dtype) == ("cpu", "float32", "float32")
    floats_per_token = 2 * 2 * 2 * 16  # layers · keys and values · heads · head_dim
    assert facts.kv_bytes == 50 * 4 * floats_per_token * 4
    assert facts.weights_bytes > 4 * 96 * 64 * 2
    assert [name for name, _, _ in phases][:3:2] == ["preparing kernels", "reading the checkpoint"]
    assert phases[-1][0] == "warming up"
    assert ("loading weights", "15/15", 1.0) in phases
    same = TorchRunner(worker_config(model, tmp_path, load_format="dummy"), quiet)
    assert same.model_fingerprint == runner.model_fingerprint


def test_steps_are_measured_while_loading(driver: Driver) -> None:
    """So that a hang in the very first step is seen as soon as in any other."""
    budget = StepBudget()
    for num_tokens, context, seconds in driver.runner.measured:
        assert seconds > 0
        budget.record(num_tokens, context, seconds)
    assert [num_tokens for num_tokens, _, _ in driver.runner.measured] == [24, 1]
    assert budget.budget_s(1, 20) < UNMEASURED_S
    assert budget.budget_s(64, 64) < UNMEASURED_S


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"num_kv_blocks": 20, "max_model_len": 100}, OutOfMemory, "--max-model-len 100 needs"),
        ({"num_kv_blocks": 0, "kv_cache_memory": 100}, OutOfMemory, "not one KV block fits"),
        ({"max_model_len": 257}, StartupError, "--max-model-len 257 is longer than the model's 256"),
    ],
)
def test_sizes_that_do_not_fit(
    sizes: dict[str, Any], error: type[StartupError], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        TorchRunner(worker_config(model, tmp_path, load_format="dummy", **sizes), quiet)


def test_the_shortest_context_works(model: Path, tmp_path: Path) -> None:
    driver = Driver(TorchRunner(worker_config(model, tmp_path, load_format="dummy", max_model_len=1), quiet))
    seq = driver.add([7])
    assert len(driver.run([seq], 1)[0]) == 1


def test_a_prompt_chunk_does_not_sample(driver: Driver) -> None:
    seq = driver.add(PROMPT)
    driver.step({seq: 3})
    assert seq.outputs == []
    driver.step({seq: 4})
    assert len(seq.outputs) == 1


def test_seeded_text_is_replayed_from_any_point(driver: Driver) -> None:
    penalized = SamplingParams(temperature=0.9, seed=4, frequency_penalty=0.5, repetition_penalty=1.1)
    for params in (SEEDED, penalized):
        whole = driver.add(PROMPT, params)
        driver.run([whole], 20)
        resumed = driver.add(PROMPT, params, outputs=whole.outputs[:8])
        driver.run([resumed, driver.add(PROMPT, SamplingParams(seed=1))], 20, chunk=5)
        assert resumed.outputs == whole.outputs


def test_min_tokens_count_outputs_and_not_the_prompt(driver: Driver) -> None:
    """Also when some of them were output before a restart."""
    eager = SamplingParams(temperature=0, min_tokens=4, logit_bias=((2, 100.0), (3, 100.0)))
    for outputs in ([], [7, 8]):
        seq = driver.add(PROMPT, eager, outputs=outputs)
        driver.run([seq], 6)
        assert [token in (2, 3) for token in seq.outputs] == [False] * 4 + [True] * 2


def test_a_row_that_is_not_finite_fails_alone(driver: Driver) -> None:
    """Its blocks are poisoned on the way; when they are granted again, nobody notices."""
    healthy, sick = driver.add(PROMPT), driver.add(PROMPT[::-1])
    expected = driver.run([driver.add(PROMPT)], 12)[0]
    driver.run([healthy, sick], 3)
    driver.runner.served.cache.tensor[:, :, sick.blocks[0]] = math.nan
    result = driver.step({sick: 1, healthy: 1})
    assert result.failed_rows == ((0, "numerical_error"),)
    assert (sick.failure, healthy.failure) == ("numerical_error", "")
    sick.token_ids.append(0)  # the next step was planned before the failure was known
    driver.step({healthy: 1, sick: 1})
    assert sick.failure == "numerical_error"
    driver.drop(sick)
    third = driver.add(PROMPT)
    driver.run([healthy, third], 12)
    assert healthy.outputs == third.outputs == expected
    assert set(third.blocks) & set(sick.blocks)


def test_garbage_of_one_sequence_changes_no_bit_of_another(model: Path, tmp_path: Path) -> None:
    """Decoding beside it and prefilling beside it, in blocks that held garbage before."""
    everything = SamplingParams(temperature=0, logprobs=96)
    seen: list[list[dict[int, float]]] = []
    for sickness in (False, True):
        runner = TorchRunner(worker_config(model, tmp_path, load_format="dummy", num_kv_blocks=60), quiet)
        driver = Driver(runner)
        if sickness:
            runner.spoil(range(60))  # granted blocks are blanked, so this is nobody's
        neighbours = [driver.add(PROMPT[i:] + PROMPT[:i], everything) for i in range(6)]
        sick = driver.add(PROMPT * 2)
        driver.run([*neighbours[:3], sick], 4)
        if sickness:
            runner.spoil(sick.blocks)
        driver.step({neighbours[0]: 1, neighbours[3]: 7, sick: 1, neighbours[1]: 1, neighbours[4]: 7})
        assert (sick.failure == "numerical_error") == sickness
        if sickness:
            sick.token_ids.append(0)
        driver.step({neighbours[5]: 4, sick: 1, **dict.fromkeys(neighbours[:5], 1)})
        driver.step({neighbours[5]: 3, **dict.fromkeys(neighbours[:5], 1)})
        seen.append([row for seq in neighbours for row in seq.logprobs])
    assert len(seen[0]) == 3 * 4 + 2 + 2 + 5 + 6
    assert seen[0] == seen[1]


def test_a_sequence_whose_start_fails_is_named(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(slot: int, *_: object) -> None:
        raise ValueError("no such parameter")

    monkeypatch.setattr(driver.runner.steps, "start", start)
    seq = driver.add(PROMPT)
    with pytest.raises(RowsFailed, match="no such parameter") as caught:
        driver.step({seq: 7})
    assert caught.value.slots == (seq.slot,)


def test_a_fault_makes_one_row_sick(model: Path, tmp_path: Path) -> None:
    """The debug seam over the real model."""
    config = worker_config(model, tmp_path, load_format="dummy")
    healthy = Driver(TorchRunner(config, quiet))
    environ = {"TERN_FAULTS": "nan:token=29"}
    runner: Any = faulty(TorchRunner(config, quiet), 0, StepBudget(), Progress().beat, environ)
    driver = Driver(runner)
    marked, other = driver.add(PROMPT), driver.add(PROMPT[:-1])
    driver.step({marked: 7, other: 6})
    assert (marked.failure, other.failure) == ("numerical_error", "")
    marked.token_ids.append(0)
    driver.step({other: 1, marked: 1})
    assert marked.failure == "numerical_error"
    inner = runner.runner.served.cache.tensor
    assert inner[:, :, marked.blocks[1:]].isnan().all(), "the token stands in the second block"
    assert inner[:, :, marked.blocks[0]].isfinite().all()
    assert driver.run([other], 8) == healthy.run([healthy.add(PROMPT[:-1])], 8)


def test_logprobs_of_those_who_asked(driver: Driver) -> None:
    """Raw: not touched by bias, and each row as if it were alone."""
    biased = SamplingParams(temperature=0, logit_bias=((7, 100.0),), logprobs=2)
    plain, wide = driver.add(PROMPT), driver.add(PROMPT, SamplingParams(temperature=0, logprobs=5))
    narrow = driver.add(PROMPT, biased)
    driver.step({plain: 7, wide: 7, narrow: 7})
    assert plain.logprobs == []
    assert narrow.outputs == [7]
    assert set(wide.logprobs[0]) - {7} == set(narrow.logprobs[0]) - {7}
    assert narrow.logprobs[0][7] < max(narrow.logprobs[0].values())
    assert max(wide.logprobs[0], key=lambda token: wide.logprobs[0][token]) == wide.outputs[0]
    assert sum(math.exp(p) for p in wide.logprobs[0].values()) < 1


def test_prompt_logprobs_do_not_depend_on_chunks(driver: Driver) -> None:
    params = SamplingParams(temperature=0, prompt_logprobs=0)
    whole, parts = driver.add(PROMPT, params), driver.add(PROMPT, params)
    driver.run([whole], 2)
    driver.run([parts], 2, chunk=2)
    assert sorted(whole.prompt_logprobs) == sorted(parts.prompt_logprobs) == list(range(1, 7))
    for position, row in whole.prompt_logprobs.items():
        assert list(row) == [PROMPT[position]]
        assert parts.prompt_logprobs[position][PROMPT[position]] == pytest.approx(
            row[PROMPT[position]], abs=1e-4
        )


def test_reset_forgets_and_goes_on(driver: Driver) -> None:
    seq = driver.add(PROMPT)
    expected = driver.run([seq], 5)[0]
    plan = driver.plan({seq: 1})
    driver.runner.reset()
    with pytest.raises(InternalError, match="schedules slots that are empty"):
        driver.runner.execute(plan)
    driver.runner.reset()
    assert Driver(driver.runner).run([Driver(driver.runner).add(PROMPT)], 5) == [expected]


def test_a_result_names_its_step(driver: Driver) -> None:
    plan = driver.plan({driver.add(PROMPT): len(PROMPT)})
    result = driver.runner.execute(msgspec.structs.replace(plan, epoch=8, step=9))
    assert (result.epoch, result.step, len(result.token_ids)) == (8, 9, 4)


def test_full_slots_and_every_kind_of_row(driver: Driver) -> None:
    """All slots, all features at once, with releases and starts in between: everyone as if alone."""
    kinds = [GREEDY, SEEDED, SamplingParams(top_k=3, seed=2), SamplingParams(top_p=0.5, seed=3, logprobs=1)]
    chance = np.random.default_rng(0)
    prompts = [chance.integers(0, 96, int(n)).tolist() for n in chance.integers(1, 30, 24)]
    alone = []
    for i, prompt in enumerate(prompts):
        seq = driver.add(prompt, kinds[i % 4])
        alone.append(driver.run([seq], 10)[0])
        driver.drop(seq)
    waiting = list(enumerate(prompts))
    running: dict[Resident, int] = {}
    while waiting or running:
        while waiting and driver.free_slots:
            i, prompt = waiting.pop(0)
            running[driver.add(prompt, kinds[i % 4])] = i
        driver.step({seq: min(seq.left, 6) for seq in running})
        for seq in [s for s in running if len(s.outputs) == 10]:
            assert seq.outputs == alone[running.pop(seq)]
            driver.drop(seq)


def test_profile(driver: Driver, tmp_path: Path) -> None:
    assert driver.runner.profile(False) == "not started"
    assert driver.runner.profile(True) == "started"
    assert driver.runner.profile(True) == "already started"
    driver.run([driver.add(PROMPT)], 2)
    path = Path(driver.runner.profile(False))
    assert path.parent == tmp_path
    assert json.loads(path.read_text())["traceEvents"]


def test_cuda_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    config = worker_config(model, tmp_path, load_format="dummy")
    with pytest.raises(StartupError, match="--device cuda"):
        TorchRunner(msgspec.structs.replace(config, parallel=ParallelOptions(device="cuda")), quiet)


def test_batch_invariance_needs_kernels_that_have_it(model: Path, tmp_path: Path) -> None:
    config = worker_config(model, tmp_path, load_format="dummy")
    options = ParallelOptions(batch_invariant="on", cpu_kernels="torch")
    with pytest.raises(StartupError, match="--batch-invariant on needs the kernels in C"):
        TorchRunner(msgspec.structs.replace(config, parallel=options), quiet)


def test_threads(driver: Driver) -> None:
    assert torch.get_num_threads() == 1
    assert 1 <= physical_cores() <= 4096
