"""Choosing and drawing in C against their definitions."""

import numpy as np
import pytest
import torch

from tests.worker.native import kernels, threads
from tests.worker.test_sampler import kept
from worker.kernels.cpu.library import Library
from worker.kernels.sampling import Limits, SamplingKernels

LIMITS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 0.9, 0.0),
    (0, 0.3, 0.0),
    (0, 0.999, 0.01),
    (40, 0.5, 0.2),
    (1000, 1.0, 0.0),
]
"""top_k, top_p, min_p"""


@pytest.fixture(scope="module")
def native() -> Library:
    return kernels()


@pytest.mark.parametrize("vocab", [1, 5, 40, 2048, 2051])
def test_the_first_of_the_likeliest_and_what_is_not_finite(native: Library, vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(9, vocab)
    logits[1, vocab // 2 :] = 7.0
    for row, value in ((3, torch.nan), (4, torch.inf), (5, -torch.inf)):
        logits[row, vocab - 1] = value
    with threads(native, 2):
        tokens, finite = SamplingKernels(native).choose(logits)
    assert finite.tolist() == [row not in (3, 4, 5) for row in range(9)]
    assert tokens[1] == vocab // 2
    assert torch.equal(tokens[finite], logits[torch.from_numpy(finite)].argmax(-1))
    assert ((tokens >= 0) & (tokens < vocab)).all()


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("limits", LIMITS)
def test_draws(native: Library, limits: tuple[int, float, float], spread: float) -> None:
    """At each number stands the token in whose part of the cumulative distribution it lies."""
    chance = np.random.default_rng(1)
    logits = torch.from_numpy(chance.normal(0, spread, (20, 300)).astype(np.float32))
    logits[:, 7] = -torch.inf
    rows, numbers = np.arange(1, 20, 2), chance.random(10)
    temperature, (top_k, top_p, min_p) = 0.5, limits
    columns = Limits(
        temperature=np.full(10, temperature, dtype=np.float32),
        top_k=np.full(10, top_k),
        top_p=np.full(10, top_p, dtype=np.float32),
        min_p=np.full(10, min_p, dtype=np.float32),
    )
    tokens = SamplingKernels(native).draw(logits, rows, columns, numbers).tolist()
    for row, number, token in zip(rows.tolist(), numbers.tolist(), tokens, strict=True):
        scaled = logits[row].double() / temperature
        weights = (scaled - scaled.max()).exp()
        possible = kept(scaled.tolist(), top_k, top_p, min_p)
        assert token in possible
        share = torch.tensor([w if i in possible else 0.0 for i, w in enumerate(weights.tolist())]).double()
        cumulative = (share / share.sum()).cumsum(0)
        # Weights are float32, and a token at the edge of top-p is worth no more than that either.
        assert cumulative[token] - share[token] / share.sum() - 1e-5 <= number <= cumulative[token] + 1e-5


def test_a_number_of_almost_one_draws_the_last_that_is_possible(native: Library) -> None:
    logits = torch.zeros(1, 10)
    logits[0, 8:] = -torch.inf
    one = Limits(
        np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32), np.zeros(1, np.float32)
    )
    draw = SamplingKernels(native).draw
    assert draw(logits, np.zeros(1, np.int64), one, np.array([1 - 2.0**-53])).tolist() == [7]
    assert draw(logits, np.zeros(1, np.int64), one, np.zeros(1)).tolist() == [0]
