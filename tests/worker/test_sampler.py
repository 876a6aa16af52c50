"""The sampler's steps against the same written out row by row."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.messages import NO_TOKEN
from protocol.sampling import SamplingParams
from worker.filters import draw, min_p_floor, top_k_top_p_floor
from worker.randomness import _mix, uniform
from worker.sampler import Sampler

VOCAB = 40
EOS = (2, 3)


def sampler(*params: SamplingParams, tokens: list[int] | None = None, num_prompt: int = 3) -> Sampler:
    """One slot for each."""
    found = Sampler(len(params), VOCAB, EOS)
    ids = np.array(tokens or [1, 2, 3], dtype=np.int32)
    for slot, p in enumerate(params):
        found.start(slot, p, ids, num_prompt)
    return found


def sample(found: Sampler, logits: Tensor, slots: list[int], position: int = 0) -> list[int]:
    positions = np.full(len(slots), position, dtype=np.int64)
    tokens: list[int] = found.sample(logits.clone(), np.array(slots, dtype=np.int64), positions).tolist()
    return tokens


def kept(logits: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Tokens that may be drawn, straight from the definitions."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    weights = [math.exp(logits[i] - logits[order[0]]) for i in order]
    total, mass = sum(weights), 0.0
    found: set[int] = set()
    for i, weight in zip(order, weights, strict=True):
        if mass >= top_p * total and found and top_p < 1:
            break
        mass += weight
        found.add(i)
    return {i for i in found if math.exp(logits[i] - logits[order[0]]) >= min_p}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    settings_=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 5, 39, 40, 1000]),
            st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
            st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_filters_keep_what_they_should(
    seed: int, spread: float, settings_: list[tuple[int, float, float]]
) -> None:
    logits = torch.randn(len(settings_), VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    top_k, top_p, min_p = (torch.tensor(column) for column in zip(*settings_, strict=True))
    floors = torch.maximum(top_k_top_p_floor(logits, top_k, top_p), min_p_floor(logits, min_p))
    for row, (k, p, m) in enumerate(settings_):
        ours = set(torch.nonzero(logits[row] >= floors[row]).flatten().tolist())
        assert ours == kept(logits[row].tolist(), k, p, m)


def test_top_p_over_a_vocabulary_wider_than_the_shortlist() -> None:
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    floors = top_k_top_p_floor(logits, torch.tensor([0, 0, 700]), torch.tensor([0.9, 1.0, 0.5]))
    for row, (k, p) in enumerate([(0, 0.9), (0, 1.0), (700, 0.5)]):
        ours = int((logits[row] >= floors[row]).sum())
        # One token more or less is within the rounding of a float32 sum over 3000.
        assert abs(ours - len(kept(logits[row].tolist(), k, p, 0))) <= 1


def test_draws_follow_the_distribution() -> None:
    """The inverse of the cumulative distribution, at evenly spaced numbers, is the distribution."""
    logits = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4]).log()
    count = 10_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = draw(logits.expand(count, -1), None, numbers.unsqueeze(1))
    assert Counter(tokens.tolist()) == {0: 1000, 1: 2000, 3: 3000, 4: 4000}


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    ends = torch.tensor([[0.0], [1 - 2.0**-53]], dtype=torch.float64)
    assert draw(logits.expand(2, -1), None, ends).tolist() == [1, 2]


def test_splitmix_gives_its_published_numbers() -> None:
    """First outputs of SplitMix64 seeded with 1234567."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_uniform() -> None:
    """Over 256 seeds and 256 positions: mean and variance of U(0, 1), and no number twice."""
    seeds, positions = (a.flatten() for a in np.meshgrid(np.arange(256), np.arange(256)))
    numbers = uniform(seeds.astype(np.uint64), positions.astype(np.int64))
    assert abs(numbers.mean() - 1 / 2) < 0.005
    assert abs(numbers.var() - 1 / 12) < 0.002
    assert len(np.unique(numbers)) == len(numbers)
    assert numbers.min() >= 0
    assert numbers.max() < 1


MIXED = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(temperature=0.7, top_p=0.8, seed=2),
    SamplingParams(temperature=1.3, top_k=5, seed=3),
    SamplingParams(temperature=1.1, min_p=0.1, seed=4),
    SamplingParams(repetition_penalty=1.5, seed=5),
    SamplingParams(logit_bias=((7, 3.0), (8, -5.0)), seed=6),
    SamplingParams(min_tokens=9, stop_token_ids=(4,), seed=7),
    SamplingParams(allowed_token_ids=(1, 5, 6, 7), seed=8),
    SamplingParams(bad_words=((6,), (7,), (9, 9)), seed=9),
]


def test_a_row_does_not_depend_on_its_company() -> None:
    logits = torch.randn(len(MIXED), VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    for position in range(20):
        together = sample(sampler(*MIXED), logits, list(range(len(MIXED))), position)
        for slot in range(len(MIXED)):
            assert sample(sampler(*MIXED), logits[slot : slot + 1], [slot], position) == [together[slot]]


def test_a_seed_and_a_position_decide() -> None:
    logits = torch.zeros(1, VOCAB)
    draws = [sample(sampler(SamplingParams(seed=s)), logits, [0], p) for s in (1, 2) for p in range(30)]
    again = [sample(sampler(SamplingParams(seed=s)), logits, [0], p) for s in (1, 2) for p in range(30)]
    assert draws == again
    assert draws[:30] != draws[30:]
    assert len({token for (token,) in draws}) > VOCAB // 2


@pytest.mark.parametrize("temperature", [0.0, 9e-6])
def test_no_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(1, VOCAB)
    assert sample(sampler(SamplingParams(temperature=temperature)), logits, [0]) == [int(logits.argmax())]


def test_logit_bias() -> None:
    params = SamplingParams(temperature=0, logit_bias=((11, 100.0), (11 + VOCAB, 100.0)))
    assert sample(sampler(params), torch.randn(1, VOCAB), [0]) == [11]
    banned = SamplingParams(temperature=0, logit_bias=((5, -100.0),))
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 6] = 50, 1
    assert sample(sampler(banned), logits, [0]) == [6]


def test_no_end_before_min_tokens() -> None:
    params = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=(9, VOCAB + 1))
    logits = torch.zeros(1, VOCAB)
    logits[0, [2, 3, 9]], logits[0, 20] = 10, 5
    assert [sample(sampler(params), logits, [0], p)[0] for p in range(4)] == [20, 20, 20, 2]


def test_penalties_by_definition() -> None:
    """Prompt 4 5 5, outputs 5 6 6: repetition sees 4 5 6, the others 5 once and 6 twice."""
    params = SamplingParams(
        temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25
    )
    found = sampler(params, tokens=[4, 5, 5, 5, 6, 6], num_prompt=3)
    logits = torch.randn(1, VOCAB)
    penalties = tuple(torch.tensor([[value]]) for value in (2.0, 0.5, 0.25))
    ours = found.penalties.apply(logits, torch.tensor([0]), *penalties)
    expected = logits.clone()
    for token, outputs in ((4, 0), (5, 1), (6, 2)):
        value = float(logits[0, token])
        value = value / 2 if value > 0 else value * 2
        expected[0, token] = value - 0.25 * outputs - (0.5 if outputs else 0)
    torch.testing.assert_close(ours, expected)


def test_penalties_count_on_and_replay_exactly() -> None:
    """A sequence that starts again with its outputs goes on as if it had never stopped."""
    params = SamplingParams(frequency_penalty=1.0, presence_penalty=0.3, repetition_penalty=1.2, seed=9)
    logits = torch.randn(30, 1, VOCAB, generator=torch.Generator().manual_seed(5))
    through = sampler(params)
    outputs = [sample(through, logits[i], [0], i)[0] for i in range(30)]
    resumed = sampler(params, tokens=[1, 2, 3, *outputs[:12]])
    assert [sample(resumed, logits[i], [0], i)[0] for i in range(12, 30)] == outputs[12:]
    frequent = sampler(SamplingParams(temperature=0, frequency_penalty=2.0))
    flat = torch.zeros(1, VOCAB)
    assert len({sample(frequent, flat, [0], i)[0] for i in range(VOCAB)}) == VOCAB


def test_only_allowed_tokens() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    best = int(logits.argmax())
    greedy = SamplingParams(temperature=0, allowed_token_ids=tuple(set(range(VOCAB)) - {best}))
    assert sample(sampler(greedy), logits, [0]) == [int(logits.topk(2).indices[0, 1])]
    drawn = sampler(SamplingParams(allowed_token_ids=(7, 9, VOCAB + 1), logit_bias=((3, 100.0),), seed=2))
    assert {sample(drawn, logits, [0], i)[0] for i in range(50)} == {7, 9}


words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(bad=st.lists(words, min_size=1, max_size=4), seed=st.integers(0, 100), begun=st.integers(0, 9))
def test_bad_words_against_their_definition(
    bad: list[tuple[tuple[int, ...], ...]], seed: int, begun: int
) -> None:
    """Over four tokens, so that words begin all the time; the prompt holds beginnings that do not count."""
    params = [
        SamplingParams(bad_words=one, allowed_token_ids=(0, 1, 2, 3), seed=seed + slot)
        for slot, one in enumerate(bad)
    ]
    found = sampler(*params, tokens=[1, 2, 3])
    outputs: list[list[int]] = [[] for _ in bad]
    logits = torch.randn(20, len(bad), VOCAB, generator=torch.Generator().manual_seed(seed))
    for position in range(20):
        if position == begun:  # everything starts again
            for slot, p in enumerate(params):
                ids = np.array([1, 2, 3, *outputs[slot]], dtype=np.int32)
                found.start(slot, p, ids, 3)
        tokens = sample(found, logits[position], list(range(len(bad))), position)
        for slot, token in enumerate(tokens):
            if NO_TOKEN in outputs[slot]:
                continue
            so_far = outputs[slot]
            ends = {w[-1] for w in bad[slot] if tuple([*so_far, w[-1]][-len(w) :]) == w}
            left = {0, 1, 2, 3} - ends
            assert token in left if left else token == NO_TOKEN
            outputs[slot].append(token)


def test_a_row_without_any_allowed_token_does_not_disturb_others() -> None:
    stuck = SamplingParams(allowed_token_ids=(7,), bad_words=((7,),), frequency_penalty=1.0)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    found = sampler(SamplingParams(seed=3), stuck, SamplingParams(temperature=0))
    tokens = sample(found, logits, [0, 1, 2])
    assert tokens[1] == NO_TOKEN
    assert tokens[0] == sample(sampler(SamplingParams(seed=3)), logits[:1], [0])[0]
    assert tokens[2] == int(logits[2].argmax())
