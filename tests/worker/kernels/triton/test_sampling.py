"""Against worker/sampler.py itself, whose tokens must come out, one row after the other."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from protocol.sampling import SamplingParams
from worker.kernels.triton import sampling
from worker.kernels.triton.uniform import uniform
from worker.randomness import uniform as uniform_on_the_host
from worker.sampler import Sampler

VOCAB, EOS = 200, 7


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 64)
    monkeypatch.setattr(sampling, "TILE", 64)
    monkeypatch.setattr(sampling, "WIDE", 128)


def parameters(rows: list[SamplingParams], num_prompt: int, device: torch.device) -> sampling.Parameters:
    """Slot i has the parameters of row i; histories are still to come."""

    def column(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def padded(lists: list[list[Any]], fill: float, dtype: torch.dtype) -> Tensor:
        width = max(1, *(len(one) for one in lists))
        return column([one + [fill] * (width - len(one)) for one in lists], dtype)

    f32, i32 = torch.float32, torch.int32
    return sampling.Parameters(
        temperature=column([p.temperature for p in rows], f32),
        top_k=column([p.top_k for p in rows], i32),
        top_p=column([p.top_p for p in rows], f32),
        min_p=column([p.min_p for p in rows], f32),
        repetition=column([p.repetition_penalty for p in rows], f32),
        presence=column([p.presence_penalty for p in rows], f32),
        frequency=column([p.frequency_penalty for p in rows], f32),
        seeds=sampling.as_bits([p.seed for p in rows]).to(device),
        num_prompt=column([num_prompt] * len(rows), i32),
        min_tokens=column([p.min_tokens for p in rows], i32),
        ends=padded([[EOS, *p.stop_token_ids] for p in rows], -1, i32),
        num_ends=column([1 + len(p.stop_token_ids) for p in rows], i32),
        bias_ids=padded([[token for token, _ in p.logit_bias] for p in rows], -1, i32),
        bias_values=padded([[value for _, value in p.logit_bias] for p in rows], 0.0, f32),
        num_biases=column([len(p.logit_bias) for p in rows], i32),
        counts=torch.zeros(len(rows), VOCAB, dtype=i32, device=device),
        prompts=torch.zeros(len(rows), VOCAB, dtype=torch.int8, device=device),
    )


def sampled_rows(slots: list[int], lens: list[int], device: torch.device) -> sampling.SampledRows:
    """Without masks."""

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    masks = torch.zeros(2, -(-VOCAB // 32), dtype=torch.int32, device=device)
    unmasked = column([-1] * len(slots))
    return sampling.SampledRows(column(slots), column(lens), unmasked, masks, column([0] * len(slots)))


def check(rows: list[SamplingParams], logits: Tensor, device: torch.device, prompt: int = 3) -> Tensor:
    """Rows have outputs of different numbers; kernels get all rows at once, the sampler one by one."""
    count = len(rows)
    chance = np.random.default_rng(0)
    histories = [chance.integers(0, 40, prompt + 2 * row).astype(np.int32) for row in range(count)]
    positions = [2 * row for row in range(count)]
    expected = []
    for row, params in enumerate(rows):
        sampler = Sampler(1, VOCAB, (EOS,))
        sampler.start(0, params, histories[row], prompt)
        at = np.array([positions[row]])
        expected.append(int(sampler.sample(logits[row : row + 1].clone(), np.array([0]), at)))
    p = parameters(rows, prompt, device)
    for row, history in enumerate(histories):
        p.prompts[row, torch.from_numpy(history[:prompt]).long()] = 1
        p.counts[row] = torch.bincount(torch.from_numpy(history[prompt:]).long(), minlength=VOCAB)
    order = list(range(count))[::-1]  # rows are not in the order of their slots
    tokens = run(logits[order], p, sampled_rows(order, [prompt + positions[i] for i in order], device))
    assert tokens[::-1] == expected
    return torch.tensor(expected)


def run(logits: Tensor, p: sampling.Parameters, rows: sampling.SampledRows) -> list[int]:
    found = logits.to(p.seeds.device)
    tokens = torch.full((len(found),), 99, dtype=torch.int64, device=found.device)
    sampling.sample(found, p, rows, sampling.edit(found, p, rows), tokens)
    return tokens.tolist()


@triton.jit  # type: ignore[untyped-decorator]
def _uniforms(seeds_ptr, positions_ptr, out_ptr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, COUNT)
    tl.store(out_ptr + at, uniform(tl.load(seeds_ptr + at), tl.load(positions_ptr + at)))


def test_uniform_numbers_are_those_of_the_host(device: torch.device) -> None:
    seeds, positions = [0, 1, 2**63, 2**64 - 1], [0, 5, 2**40, 7]
    found = torch.empty(4, dtype=torch.float64, device=device)
    _uniforms[(1,)](
        sampling.as_bits(seeds).to(device), torch.tensor(positions, device=device), found, COUNT=4
    )
    expected = uniform_on_the_host(np.array(seeds, dtype=np.uint64), np.array(positions))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": VOCAB + 5},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"top_k": 40, "top_p": 0.7, "min_p": 0.01},
    ],
)
@pytest.mark.parametrize("candidates", [4, 64])
def test_filters(
    filters: dict[str, Any], candidates: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floors are found among the few that they can be, or in the row where those are too many."""
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    rows = [SamplingParams(temperature=0.4 + row, seed=row * 977 + 5, **filters) for row in range(3)]
    check(rows, torch.randn(3, VOCAB) * 3, device)


def test_every_row_has_its_own_parameters(device: torch.device) -> None:
    rows = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.3, seed=2**64 - 3, top_p=0.9),
        SamplingParams(temperature=0.7, seed=4, repetition_penalty=1.7, presence_penalty=0.5),
        SamplingParams(temperature=0, frequency_penalty=1.5, logit_bias=((3, 4.0), (150, -2.0))),
        SamplingParams(temperature=1, seed=9, min_tokens=30, stop_token_ids=(11,), logit_bias=((EOS, 50.0),)),
    ]
    check(rows, torch.randn(len(rows), VOCAB), device)


def test_ties_are_kept(device: torch.device) -> None:
    """All logits equal: any filter keeps all."""
    rows = [SamplingParams(temperature=1, seed=seed, top_k=3) for seed in range(4)]
    tokens = check(rows, torch.zeros(4, VOCAB), device)
    assert int(tokens.max()) > 3


def test_equals_of_the_likeliest_give_the_first(device: torch.device) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [70, 130]] = 5
    assert check([SamplingParams(temperature=0)], logits, device).tolist() == [70]


def test_a_bitmask_forbids_in_its_row_alone(device: torch.device) -> None:
    allowed = [0, 31, 32, 63, 64, 199]
    p = parameters([SamplingParams(temperature=1, seed=seed) for seed in range(6)], 1, device)
    rows = sampled_rows(list(range(6)), [1] * 6, device)
    for token in allowed:
        rows.masks[1, token // 32] |= 1 << token % 32 if token % 32 < 31 else -(1 << 31)
    rows.mask_rows[:5] = 1
    tokens = run(torch.zeros(6, VOCAB), p, rows)
    assert set(tokens[:5]) <= set(allowed)
    assert tokens[5] not in allowed, "seed 5 draws another one when it may"


def test_what_is_no_token(device: torch.device) -> None:
    """A row that is not finite, one that may sample nothing, one that only pads; and one beside them."""
    p = parameters([SamplingParams(temperature=float(i > 1), seed=i) for i in range(4)], 1, device)
    rows = sampled_rows([0, 1, -1, 3], [1, 1, 0, 1], device)
    rows.mask_rows[1] = 0
    logits = torch.zeros(4, VOCAB)
    logits[0, 130], logits[2, 5] = float("nan"), float("inf")
    tokens = run(logits, p, rows)
    assert tokens[:3] == [sampling.NOT_FINITE.value, sampling.NO_TOKEN.value, 99]
    assert tokens[3] >= 0
