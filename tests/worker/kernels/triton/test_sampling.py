"""Against worker/sampler.py itself, whose tokens must come out, one row after the other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.sampling import SamplingParams
from worker.kernels.triton import sampling, uniform
from worker.sampler import Sampler

VOCAB, EOS = 200, 7


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "TILE", 64)


def parameters(rows: list[SamplingParams], positions: list[int], device: torch.device) -> sampling.Parameters:
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
        positions=column(positions, torch.int64),
        min_tokens=column([p.min_tokens for p in rows], i32),
        ends=padded([[EOS, *p.stop_token_ids] for p in rows], -1, i32),
        bias_ids=padded([[token for token, _ in p.logit_bias] for p in rows], -1, i32),
        bias_values=padded([[value for _, value in p.logit_bias] for p in rows], 0.0, f32),
    )


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
    counts = torch.zeros(count, VOCAB, dtype=torch.int32)
    prompts = torch.zeros(count, VOCAB, dtype=torch.int8)
    for row, history in enumerate(histories):
        prompts[row, torch.from_numpy(history[:prompt]).long()] = 1
        counts[row] = torch.bincount(torch.from_numpy(history[prompt:]).long(), minlength=VOCAB)
    found = logits.to(device)
    p = parameters(rows, positions, device)
    slots = torch.arange(count, dtype=torch.int32, device=device)
    sampling.edit(found, p, counts=counts.to(device), prompts=prompts.to(device), slots=slots)
    tokens = sampling.sample(found, p).cpu()
    assert tokens.tolist() == expected
    return tokens


def test_uniform_numbers_are_those_of_the_host(device: torch.device) -> None:
    seeds = sampling.as_bits([0, 1, 2**63, 2**64 - 1, 123456789])
    positions = torch.tensor([0, 5, 2**40, 7, 1])
    found = uniform.uniforms(seeds.to(device), positions.to(device))
    assert torch.equal(found.cpu(), uniform.reference(seeds, positions))


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
def test_filters(filters: dict[str, Any], device: torch.device) -> None:
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


def test_a_bitmask_forbids(device: torch.device) -> None:
    allowed = [0, 33, 199]
    words = np.zeros(-(-VOCAB // 32), dtype=np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    mask = torch.from_numpy(words.view(np.int32)).expand(6, -1).contiguous().to(device)
    p = parameters([SamplingParams(temperature=1, seed=seed) for seed in range(6)], [0] * 6, device)
    logits = torch.zeros(6, VOCAB, device=device)
    sampling.edit(logits, p, mask=mask)
    assert set(sampling.sample(logits, p).tolist()) == set(allowed)
    assert torch.equal(logits[0].isfinite().nonzero().flatten().cpu(), torch.tensor(allowed))
