"""The worker's own runner on the Triton kernels, beside the same on torch. Where Triton interprets, its
device is the CPU and graphs are replayed.py's; on a GPU both are the GPU's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from protocol import columns
from protocol.config import WorkerConfig
from protocol.errors import OutOfMemory, StartupError
from protocol.options import SchedulerOptions
from protocol.sampling import SamplingParams
from tests.worker.adapters import write_adapter
from tests.worker.driver import GREEDY, Driver, Resident, quiet, worker_config, write_config
from tests.worker.kernels.triton.replayed import ReplayedDevice, open_gpu
from worker import devices
from worker.gpu.steps import DeviceSteps
from worker.launched import DEPTH
from worker.runner import TorchRunner

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FAMILIES: dict[str, dict[str, object]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True},
    "one layer": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "num_hidden_layers": 1},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_hidden_layers": 1,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 96,
        "tie_word_embeddings": True,
    },
}
SEEDED = SamplingParams(temperature=0.9, top_p=0.9, seed=11, repetition_penalty=1.2, min_tokens=3)
UNSEEN = -7
"""Of a token that the device has and the test does not."""
TELLS = SamplingParams(temperature=0, logprobs=3, prompt_logprobs=1)


class Served:
    """A runner on torch or on the kernels."""

    def __init__(
        self, folder: Path, family: str, device: torch.device | None, *, eager: bool = False, **options: Any
    ) -> None:
        """`device`: None for torch's."""
        model = write_config(folder / family, **{**SMALL, **FAMILIES[family]})
        self.gpu = None if device is None else open_gpu(device)
        self.driver = Driver(runner_on(self.gpu, config(model, folder, eager=eager, **options)))

    def replays(self) -> int:
        assert self.gpu is not None
        streams = self.gpu.streams
        return streams.replays if isinstance(streams, ReplayedDevice) else 1


def config(model: Path, folder: Path, *, eager: bool = False, **options: Any) -> WorkerConfig:
    sizes = {"num_kv_blocks": 40, "max_num_seqs": 3, "load_format": "dummy", **options}
    made = worker_config(model, folder, **sizes)
    return msgspec.structs.replace(
        made,
        scheduler=SchedulerOptions(max_num_seqs=made.scheduler.max_num_seqs, max_num_batched_tokens=8),
        parallel=msgspec.structs.replace(made.parallel, enforce_eager=eager),
    )


def runner_on(gpu: Any, config: WorkerConfig) -> TorchRunner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "choose", lambda *_: gpu)
        return TorchRunner(config, quiet)


def generate(driver: Driver) -> list[Resident]:
    """Prompts that start in different steps, one of them in chunks; and what is decoded alone, and beside
    them."""
    first, second = driver.add(list(range(5, 14)), SEEDED), driver.add([1, 60, 3], GREEDY)
    driver.step({first: 5})
    driver.step({first: 4, second: 3})
    driver.run([first, second], 3)
    third = driver.add([9, 8, 7, 6], TELLS)
    driver.step({third: 4, first: 1, second: 1})
    driver.run([second, third], 5)
    for seq in (first, second, third):
        driver.drop(seq)
    return [first, second, third]


def check(found: Sequence[Resident], expected: Sequence[Resident]) -> None:
    for ours, right in zip(found, expected, strict=True):
        assert ours.outputs == right.outputs
        for one, other in zip(ours.logprobs, right.logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        assert ours.prompt_logprobs.keys() == right.prompt_logprobs.keys()
        for position, told in ours.prompt_logprobs.items():
            assert told == pytest.approx(right.prompt_logprobs[position], abs=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_the_same_answers_as_on_torch(family: str, tmp_path: Path, device: torch.device) -> None:
    served = Served(tmp_path, family, device)
    check(generate(served.driver), generate(Served(tmp_path, family, None).driver))
    assert served.replays() >= 4, "decodes were replayed"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Driver]:
    """On the kernels, and on torch."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pair")
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with np.errstate(all="ignore"):  # as conftest.py, for each test
        return Served(folder, "qwen3", where), Served(folder, "qwen3", None).driver


@pytest.mark.parametrize(("stored", "family"), [("int8", "one layer"), ("fp8", "qwen3")])
def test_the_same_answers_from_a_quantized_cache(
    stored: str, family: str, tmp_path: Path, device: torch.device
) -> None:
    """As torch, whose cache is rounded alike; and not as without: rounding moves log-probabilities."""
    served = Served(tmp_path, family, device, kv_cache_dtype=stored)
    cache = served.driver.runner.served.cache
    facts = served.driver.runner.facts
    assert cache.scales is not None
    assert facts.kv_bytes == 40 * (cache.tensor[:, :, 0].nbytes + cache.scales[:, :, 0].nbytes)
    assert facts.kv_dtype == {"int8": "int8", "fp8": "float8_e4m3fn"}[stored]
    found = generate(served.driver)
    rounded = Served(tmp_path, family, None, kv_cache_dtype=stored, cpu_kernels="torch")
    check(found, generate(rounded.driver))
    exact = generate(Served(tmp_path, family, None, cpu_kernels="torch").driver)
    moved = [
        abs(a[t] - b[t])
        for a, b in zip(found[2].logprobs, exact[2].logprobs, strict=True)
        for t in a
        if t in b
    ]
    assert 1e-4 < max(moved) < 0.5


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of numpy, which interprets
def test_a_sick_sequence_of_a_quantized_cache_is_found(tmp_path: Path, device: torch.device) -> None:
    driver = Served(tmp_path, "one layer", device, kv_cache_dtype="int8", eager=True).driver
    seqs = [driver.add([5, 9, 13 + i, 7, 1, 2], GREEDY) for i in range(2)]
    driver.run(seqs, 1, chunk=4)
    driver.runner.spoil([seqs[0].tables[0][0]])
    assert driver.step(dict.fromkeys(seqs, 1)).failed_rows == ((0, "numerical_error"),)


def test_the_same_answers_of_another_family(pair: tuple[Served, Driver]) -> None:
    check(generate(pair[0].driver), generate(pair[1]))


def test_launches_of_a_step(pair: tuple[Served, Driver]) -> None:
    """Each costs a microsecond or two of a step, whatever it does. Two layers; of several rows, the largest
    step is captured first."""
    assert pair[0].gpu is not None
    streams = pair[0].gpu.streams
    if not isinstance(streams, ReplayedDevice):
        pytest.skip("a graph does not tell its nodes")
    # state, rotations (2), embedding, plan of attention; head, edit, sample, state
    around = 9
    assert streams.lengths[-1] == around + 2 * 6, "projection, rotation, attention, and three projections"
    assert streams.lengths[0] == around + 1 + 2 * 9, "norms and the activation apart"


SHAPES = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32), "mlp.gate_proj": (48, 32), "mlp.down_proj": (32, 48),
}  # fmt: skip


def test_a_graph_serves_whatever_adapters_its_rows_have(tmp_path: Path, device: torch.device) -> None:
    """Captured with none; and mixed steps. A slot goes from one adapter to another."""
    modules = {f"model.layers.0.{name}": shape for name, shape in SHAPES.items()}
    few = {module: shape for module, shape in modules.items() if "v_proj" in module}
    all_of_it = write_adapter(tmp_path / "a", modules, seed=1)
    values = write_adapter(tmp_path / "b", few, seed=2, std=1.0, r=20, use_rslora=True)
    lora = [f"all={all_of_it}", f"values={values}"]
    served = Served(tmp_path, "one layer", device, lora=lora, max_num_seqs=2)
    drivers = served.driver, Served(tmp_path, "one layer", None, lora=lora, max_num_seqs=2).driver
    answers = []
    for driver in drivers:
        first, second = driver.add([5, 6, 7], GREEDY, adapter="all"), driver.add([5, 6, 7], GREEDY)
        driver.step({first: 3})
        driver.step({first: 1, second: 3})
        driver.run([first, second], 3)
        driver.drop(first)
        third = driver.add([5, 6, 7], GREEDY, adapter="values")
        driver.run([third, second], 5)
        answers.append([first.outputs, second.outputs, third.outputs])
    assert answers[0] == answers[1]
    assert len({tuple(outputs[:3]) for outputs in answers[0]}) == 3
    assert served.replays() >= 4, "decodes were replayed"
    ours, torchs = (driver.runner.facts.weights_bytes for driver in drivers)
    assert ours > torchs, "smaller ranks are filled up"


RULES = {
    "bad words": SamplingParams(temperature=0, bad_words=((31, 40), (7,)), logprobs=1),
    "allowed": SamplingParams(temperature=1, seed=5, allowed_token_ids=(3, 30, 33, 63)),
    "bias": SamplingParams(temperature=0, logit_bias=((20, 4.0), (21, 4.5)), frequency_penalty=1.5),
    "ends": SamplingParams(
        temperature=0, min_tokens=2, stop_token_ids=(9,), logit_bias=((9, 90.0), (2, 80.0), (40, 70.0))
    ),
}


def test_every_rule_of_a_request_is_kept(pair: tuple[Served, Driver]) -> None:
    """Rows that only the host can sample among them, and beside rows with rules of their own."""
    found = []
    for driver in (pair[0].driver, pair[1]):
        answers = []
        for names in (("bad words", "allowed"), ("bias", "ends", "allowed")):
            seqs = [driver.add([4, 4, 8 + i], RULES[name]) for i, name in enumerate(names)]
            driver.run(seqs, 4)
            answers += [(seq.outputs, seq.failure) for seq in seqs]
            for seq in seqs:
                driver.drop(seq)
        stuck = driver.add([5, 6], SamplingParams(allowed_token_ids=(7,), bad_words=((7,),)))
        driver.step({stuck: 2})
        driver.drop(stuck)
        found.append([*answers, stuck.failure])
    assert found[0] == found[1]
    assert found[0][-1] == "no_token_allowed"
    assert 9 in found[0][3][0][2:]
    assert not {9, 2} & set(found[0][3][0][:2])


def test_masks_embeddings_and_rows_that_are_not_finite(pair: tuple[Served, Driver]) -> None:
    found = []
    for driver in (pair[0].driver, pair[1]):
        seqs = [driver.add([5, 9, 13 + i], GREEDY) for i in range(2)]
        driver.run(seqs, 2)
        plan = driver.plan(dict.fromkeys(seqs, 1))
        masked = msgspec.structs.replace(
            plan, masked_rows=columns.pack_ids([1]), masks=(1 << 33).to_bytes(8, "little")
        )
        tokens = columns.unpack_ids(driver.runner.execute(masked).token_ids)
        assert tokens[1] == 33
        for seq, token in zip(seqs, tokens, strict=True):
            seq.num_computed += 1
            seq.token_ids.append(token)
        driver.runner.spoil([seqs[0].tables[0][0]])
        driver.run([seqs[1]], 4)
        result = driver.step(dict.fromkeys(seqs, 1))
        assert result.failed_rows == ((0, "numerical_error"),)
        for seq in seqs:
            driver.drop(seq)
        vector = driver.add([7, 8, 9], GREEDY)
        vector.embed = True
        driver.step({vector: 3})
        driver.drop(vector)
        assert vector.embedding is not None
        found.append((seqs[1].outputs, list(vector.embedding)))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)


def test_a_step_goes_on_from_one_that_nobody_has_read(pair: tuple[Served, Driver]) -> None:
    """Each step is launched before the result of the one before is taken, while rows come, go and swap
    slots."""
    driver, torchs = pair[0].driver, pair[1]
    prompts, samplings = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3]), (SEEDED, GREEDY, SEEDED)
    right = [torchs.add(*both) for both in zip(prompts, samplings, strict=True)]
    torchs.run(right, 6)
    first, second = driver.add(prompts[0], SEEDED), driver.add(prompts[1], GREEDY)
    under_way: list[tuple[list[Resident], Any]] = []

    def launch(counts: dict[Resident, int]) -> None:
        launched = driver.runner.launch(driver.plan(counts))
        for seq, count in counts.items():
            seq.num_computed += count
            seq.token_ids.append(UNSEEN)
        under_way.append((list(counts), launched))
        if len(under_way) == DEPTH:
            collect()

    def collect() -> None:
        seqs, launched = under_way.pop(0)
        for seq, token in zip(seqs, columns.unpack_ids(launched.result().token_ids), strict=True):
            seq.token_ids[seq.token_ids.index(UNSEEN)] = token

    launch({first: 5, second: 2})
    launch({second: 1, first: 1})
    launch({first: 1, second: 1})
    driver.drop(second)
    launch({first: 1})
    third = driver.add(prompts[2], SEEDED)
    launch({first: 1, third: 3})
    launch({third: 1, first: 1})
    launch({third: 1})
    while under_way:
        collect()
    for found, expected in zip((first, second, third), right, strict=True):
        assert found.outputs == expected.outputs[: len(found.outputs)]
    assert [len(seq.outputs) for seq in (first, second, third)] == [6, 3, 3]
    for seq in (first, third):
        driver.drop(seq)
    for seq in right:
        torchs.drop(seq)


def test_graphs_and_room_change_no_token(tmp_path: Path, device: torch.device) -> None:
    """There is room for all blocks, so it lacks when sequences share them."""
    served = Served(tmp_path, "one layer", device, eager=True)
    steps = served.driver.runner.steps
    assert isinstance(steps, DeviceSteps)
    assert not steps.graphs.captured
    answers = []
    for roomy in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps.planner, "fits", lambda _, roomy=roomy: roomy)
            seq = served.driver.add([3, 1, 4], GREEDY)
            answers.append(served.driver.run([seq], 3)[0])
            served.driver.drop(seq)
    assert answers[0] == answers[1]
    assert served.replays() in (0, 1)


@pytest.mark.parametrize(("num_bytes", "fits"), [(1 << 22, True), (1 << 16, False)])
def test_blocks_are_what_steps_leave(
    num_bytes: int, fits: bool, tmp_path: Path, device: torch.device
) -> None:
    if device.type == "cuda":
        pytest.skip("of a device whose memory is known")
    model = write_config(tmp_path / "model", **{**SMALL, **FAMILIES["qwen3"]}, dtype="float32")
    options = config(model, tmp_path, num_kv_blocks=0, max_num_seqs=1, eager=True)
    if not fits:
        with pytest.raises(OutOfMemory, match=r"the weights .* take"):
            runner_on(open_gpu(device, num_bytes=num_bytes), options)
        return
    facts = runner_on(open_gpu(device, num_bytes=num_bytes), options).facts
    block_bytes = 2 * 2 * 4 * 16 * 4  # layers, keys and values, tokens, head_dim, bytes
    assert facts.device == "interpreter"
    left = int(num_bytes * 0.9) - 2 * (num_bytes // 8)
    assert facts.num_blocks == min(left // block_bytes, -(-facts.max_model_len // 4))
    assert facts.max_model_len == 96


def test_what_has_no_kernel_is_refused_before_it_is_read(tmp_path: Path, device: torch.device) -> None:
    model = write_config(tmp_path / "model", **SMALL)
    with pytest.raises(StartupError, match="nf4 weights have no kernel for GPUs"):
        runner_on(open_gpu(device), config(model, tmp_path, quantization="nf4"))
