"""Masks: what is forbidden is never sampled, by the real sampler and by the stub, and nobody else notices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from protocol import columns
from protocol.errors import InternalError
from protocol.messages import NO_TOKEN
from protocol.sampling import SamplingParams
from protocol.steps import StepPlan
from tests.worker.core import stub_config
from tests.worker.driver import Driver, quiet, unpack, worker_config, write_config
from tests.worker.native import kernels
from worker.kernels.sampling import SamplingKernels
from worker.masks import Masks
from worker.runner import TorchRunner
from worker.sampler import Sampler
from worker.stub import StubRunner
from worker.worker import carried

VOCAB, EOS = 40, (2, 3)


def pack(allowed: set[int], vocab_size: int) -> bytes:
    words = -(-vocab_size // 32)
    return sum(1 << token for token in allowed).to_bytes(4 * words, "little")


def plan_with(masks: dict[int, set[int]], vocab_size: int = VOCAB) -> StepPlan:
    return StepPlan(
        1,
        1,
        b"",
        b"",
        masked_rows=columns.pack_ids(masks),
        masks=b"".join(pack(allowed, vocab_size) for allowed in masks.values()),
    )


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.01, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.5, 1.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    logit_bias=st.sampled_from([(), ((7, 100.0), (9, -100.0))]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=150, deadline=None)
@given(
    wanted=st.lists(params, min_size=2, max_size=5),
    allowed=st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_only_what_is_allowed_is_sampled(wanted: list[SamplingParams], allowed: set[int], seed: int) -> None:
    sampler, free = Sampler(len(wanted), VOCAB, EOS), Sampler(len(wanted), VOCAB, EOS)
    for slot, p in enumerate(wanted):
        for one in (sampler, free):
            one.start(slot, p, np.array([1, 7, 9], dtype=np.int32), 1)
    logits = torch.randn(len(wanted), VOCAB, generator=torch.Generator().manual_seed(seed)) * 10
    slots = np.arange(len(wanted))
    masks = Masks.of(plan_with({0: allowed}), carried, np.arange(len(wanted)), VOCAB)
    positions = np.zeros(len(wanted), dtype=np.int64)
    tokens = sampler.sample(logits.clone(), slots, positions, masks).tolist()
    assert tokens[0] in allowed
    assert tokens[1:] == free.sample(logits.clone(), slots, positions).tolist()[1:]


@pytest.mark.parametrize(
    ("masks", "words"), [({5: {1}}, "rows that do not sample"), ({0: {1}, 1: {2}}, "bytes of masks")]
)
def test_masks_that_do_not_fit_the_plan(masks: dict[int, set[int]], words: str) -> None:
    plan = plan_with(masks)
    if words == "bytes of masks":
        plan = structs.replace(plan, masks=plan.masks[:-4])
    with pytest.raises(InternalError, match=words):
        Masks.of(plan, carried, np.arange(3), VOCAB)


def test_the_runner_masks_the_rows_that_the_plan_names(tmp_path: Path) -> None:
    """Rows of a plan are not those of the batch, and log-probabilities are those of the model."""
    model = write_config(tmp_path / "model")
    driver = Driver(TorchRunner(worker_config(model, tmp_path, load_format="dummy"), quiet))
    runner = driver.runner
    greedy = SamplingParams(temperature=0, logprobs=1)
    seqs = [driver.add([5, 9, 13 + i] * (i + 1), greedy) for i in range(4)]
    free = driver.plan({seq: seq.left for seq in seqs})
    unmasked = columns.unpack_ids(runner.execute(free).token_ids)
    runner.reset()
    allowed = {token for token in range(96) if token not in unmasked}
    bound = structs.replace(
        free, masked_rows=columns.pack_ids([2, 0]), masks=pack({33}, 96) + pack(allowed, 96)
    )
    result = runner.execute(bound)
    tokens = columns.unpack_ids(result.token_ids)
    assert tokens[2] == 33
    assert tokens[0] in allowed
    assert [tokens[1], tokens[3]] == [unmasked[1], unmasked[3]]
    assert result.logprobs is not None
    reports = dict(unpack(result.logprobs, dict(enumerate(tokens))))
    assert unmasked[2] in reports[2], "the model's own favourite is still reported"
    assert reports[2][33] < reports[2][unmasked[2]]


def test_the_stub_samples_what_is_allowed(tmp_path: Path) -> None:
    driver = Driver(StubRunner(stub_config(tmp_path)))  # type: ignore[arg-type]
    seq = driver.add([5, 9, 13], SamplingParams(temperature=1, seed=3))
    seen = set()
    for _ in range(60):
        plan = driver.plan({seq: seq.left})
        plan = structs.replace(plan, masked_rows=columns.pack_ids([0]), masks=pack({40, 41, 42}, 512))
        token = columns.unpack_ids(driver.runner.execute(plan).token_ids)[0]
        seen.add(token)
        seq.num_computed += seq.left
        seq.token_ids.append(token)
    assert seen == {40, 41, 42}


def test_the_runner_fails_a_row_whose_own_rules_leave_nothing(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model")
    driver = Driver(TorchRunner(worker_config(model, tmp_path, load_format="dummy"), quiet))
    rules = [SamplingParams(allowed_token_ids=(7,), bad_words=((7,),)), SamplingParams(temperature=0)]
    seqs = [driver.add([5, 9, 13], one) for one in rules]
    result = driver.runner.execute(driver.plan({seq: seq.left for seq in seqs}))
    assert result.failed_rows == ((0, "no_token_allowed"),)
    tokens = columns.unpack_ids(result.token_ids)
    assert tokens[0] == NO_TOKEN
    assert tokens[1] != NO_TOKEN


@pytest.mark.parametrize("vocab_size", [5, 16, 40, 2048, 2077])
def test_the_kernel_masks_what_torch_masks(vocab_size: int) -> None:
    draw = np.random.default_rng(vocab_size)
    logits = torch.from_numpy(draw.normal(size=(7, vocab_size)).astype(np.float32))
    rows = np.array([6, 0, 3], dtype=np.int64)
    bits = draw.integers(0, 256, (3, -(-vocab_size // 32) * 4), dtype=np.uint8)
    bits[1] = 0
    masks, expected = Masks(rows, bits), logits.clone()
    masks.apply(expected)
    wide = torch.zeros(7, vocab_size + 3)
    wide[:, :vocab_size] = logits
    masks.apply(wide[:, :vocab_size], SamplingKernels(kernels()))
    assert torch.equal(wide[:, :vocab_size], expected)
    assert not wide[:, vocab_size:].any(), "nothing behind a row is touched"
    assert (expected[0] == -torch.inf).all()
