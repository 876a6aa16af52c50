"""From logits to a token without sorting the vocabulary: every row with parameters of its own slot, so that
one captured graph serves any mixture of requests.

    edit     is the row finite? · grammar's bitmask → bias → no end before min_tokens → penalties →
             ÷ temperature                in float32, one program for each TILE, which leaves its best
    sample   one program for each row:
    greedy   the likeliest of the tiles', the first of equals
    floors   top-k, then top-p of what top-k left, then min-p: the least logit that is kept; ties are kept
    draw     inverse of the cumulative distribution, in the order of the vocabulary, at one uniform number

in the order of worker/sampler.py, whose tokens these are. The uniform number is that of worker/randomness.py,
SplitMix64 entered at (seed, output position), computed here in 64-bit integers. The cumulative sum runs in
float64.

A floor is found by its bits: logits are mapped to integers of the same order, and a digit of four bits at a
time is fixed by counting (top-k) or weighing (top-p) the logits in each of its 16 values: eight passes and no
sort. They are over the few logits that the floor can be among, put together before, if CANDIDATES hold them:
no top-k floor is below the k-th best of the tiles, and what is together less than what top-p leaves out is
below its floor. Else they are over the row, which then comes out of L2.

A row whose logits were not finite gets NOT_FINITE for a token, one that may sample nothing NO_TOKEN, and one
without a slot is left alone.

Sums of weights are float32 here and in sampler.py, in different orders: a token whose cumulative weight
lies within rounding of top_p may be kept by one and not by the other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .uniform import uniform

TILE = 2048
"""Logits at a time; one of 16 bins each in the passes that weigh."""
WIDE = 4096
"""Of the passes that only add up: a program that has a row alone waits for memory less often."""
DIGIT_BITS = tl.constexpr(4)
BINS = tl.constexpr(16)


NO_TOKEN = tl.constexpr(-1)
NOT_FINITE = tl.constexpr(-2)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of each slot, on the device. All [slots] unless said otherwise."""

    temperature: Tensor
    """float32; 0: greedy"""
    top_k: Tensor
    """int32; 0: all"""
    top_p: Tensor
    """float32; 1: all"""
    min_p: Tensor
    """float32; 0: all"""
    repetition: Tensor
    """float32; 1: none. Of tokens in prompt or output"""
    presence: Tensor
    """float32; 0: none. Of tokens in the output"""
    frequency: Tensor
    """float32; 0: none. Per time in the output"""
    seeds: Tensor
    """int64: the bits of the unsigned seed"""
    num_prompt: Tensor
    """int32: tokens before the first output"""
    min_tokens: Tensor
    """int32: outputs before which no end may come"""
    ends: Tensor
    """int32 [slots, most ends]: tokens that end; -1: none"""
    num_ends: Tensor
    """int32"""
    bias_ids: Tensor
    """int32 [slots, most biases]: -1: none"""
    bias_values: Tensor
    """float32 [slots, most biases]"""
    num_biases: Tensor
    """int32"""
    counts: Tensor
    """int32 [slots, vocab]: times in the output; right for slots with penalties"""
    prompts: Tensor
    """int8 [slots, vocab]: whether in the prompt, likewise"""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The rows of logits that are sampled."""

    slots: Tensor
    """int32 [rows]; -1: the row only pads"""
    lens: Tensor
    """int32 [rows]: tokens of the sequence before the one that is sampled"""
    mask_rows: Tensor
    """int32 [rows]: the row's mask; -1: none"""
    masks: Tensor
    """int32 [masks, ⌈vocab / 32⌉]: bit i of word w allows token 32 w + i"""
    broken: Tensor
    """int32 [rows]: scratch of edit for sample, which leaves it as it was: zeros"""


CANDIDATES = 4096
"""Logits among which a floor is looked for, instead of the row."""


class Bests(NamedTuple):
    """Of each tile of a row, as edit leaves it."""

    logits: Tensor
    """float32 [rows, tiles]: the largest"""
    tokens: Tensor
    """int32 [rows, tiles]: the first of those"""


@triton.jit
def _ordered(x):
    """float32 → int32 of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unordered(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _edit(
    logits_ptr,  # float32 [rows, vocab], edited in place
    row_slots_ptr,  # int32 [rows]
    lens_ptr,  # int32 [rows]
    mask_rows_ptr,  # int32 [rows]
    masks_ptr,  # int32 [masks, ⌈vocab / 32⌉]
    broken_ptr,  # int32 [rows], 0; set where a logit is not finite
    counts_ptr,  # int32 [slots, vocab]
    prompts_ptr,  # int8 [slots, vocab]
    bias_ids_ptr,  # int32 [slots, most_biases]
    bias_values_ptr,
    num_biases_ptr,
    ends_ptr,  # int32 [slots, most_ends]
    num_ends_ptr,
    min_tokens_ptr,
    num_prompt_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    temperature_ptr,
    bests_ptr,  # out float32 [rows, tiles]
    likeliest_ptr,  # out int32 [rows, tiles]
    vocab,
    mask_stride,
    most_biases,
    most_ends,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots_ptr + row).to(tl.int64)
    if slot < 0:
        return
    tokens = tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = tokens < vocab
    x = tl.load(logits_ptr + row * vocab + tokens, mask=there, other=0.0)
    if tl.sum((tl.abs(x) < float("inf")).to(tl.int32), axis=0) < TILE:  # a NaN is not below either
        tl.store(broken_ptr + row, 1)
    mask_row = tl.load(mask_rows_ptr + row).to(tl.int64)
    if mask_row >= 0:
        words = tl.load(masks_ptr + mask_row * mask_stride + tokens // 32, mask=there, other=0)
        x = tl.where(((words >> (tokens % 32)) & 1) != 0, x, -float("inf"))
    for i in range(tl.load(num_biases_ptr + slot)):
        token = tl.load(bias_ids_ptr + slot * most_biases + i)
        x += tl.where(tokens == token, tl.load(bias_values_ptr + slot * most_biases + i), 0.0)
    if tl.load(lens_ptr + row) - tl.load(num_prompt_ptr + slot) < tl.load(min_tokens_ptr + slot):
        for i in range(tl.load(num_ends_ptr + slot)):
            x = tl.where(tokens == tl.load(ends_ptr + slot * most_ends + i), -float("inf"), x)
    repetition, presence = tl.load(repetition_ptr + slot), tl.load(presence_ptr + slot)
    frequency = tl.load(frequency_ptr + slot)
    if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
        count = tl.load(counts_ptr + slot * vocab + tokens, mask=there, other=0)
        prompted = tl.load(prompts_ptr + slot * vocab + tokens, mask=there, other=0) != 0
        scaled = tl.where(x > 0, x / repetition, x * repetition)
        x = tl.where((count > 0) | prompted, scaled, x)
        x -= frequency * count
        x -= tl.where(count > 0, presence, 0.0)
    temperature = tl.load(temperature_ptr + slot)
    x = tl.where(temperature > 0, x / tl.where(temperature > 0, temperature, 1.0), x)
    tl.store(logits_ptr + row * vocab + tokens, x, mask=there)
    x = tl.where(there, x, -float("inf"))
    best = tl.max(x, axis=0)
    tile = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(bests_ptr + tile, best)
    tl.store(likeliest_ptr + tile, tl.min(tl.where(x == best, tokens, 0x7FFFFFFF), axis=0))


@triton.jit
def _floor(
    x_ptr,  # float32 [vocab]
    vocab,
    best,  # the largest
    wanted,  # how many, or how much weight, at least
    least_key,  # ignore logits below it
    WEIGH: tl.constexpr,
    TILE: tl.constexpr,
):
    """(largest key whose logits and those above reach `wanted`, their number or weight strictly above)."""
    bins = tl.arange(0, BINS)
    prefix = tl.zeros([], tl.int32)  # of the key without its sign's half, counted from the top
    above = tl.zeros([], tl.float32)
    for shift in range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        sums = tl.zeros([BINS], tl.float32)
        for start in range(0, vocab, TILE):
            tokens = start + tl.arange(0, TILE)
            x = tl.load(x_ptr + tokens, mask=tokens < vocab, other=-float("inf"))
            key = _ordered(x)
            from_bottom = (key ^ -0x80000000).to(tl.uint32, bitcast=True)
            alike = (key >= least_key) & (tokens < vocab)
            alike = alike & (((from_bottom >> shift) >> DIGIT_BITS).to(tl.int32) == prefix)
            share = tl.exp(x - best) if WEIGH else tl.full([TILE], 1.0, tl.float32)
            place = ((from_bottom >> shift) & (BINS - 1)).to(tl.int32)
            hits = (place[:, None] == bins[None, :]) & alike[:, None]
            sums += tl.sum(tl.where(hits, share[:, None], 0.0), axis=0)
        from_top = tl.sum(tl.where(bins[None, :] > bins[:, None], sums[None, :], 0.0), axis=1)
        reached = (above + from_top + sums >= wanted) & (sums > 0)
        least = tl.min(tl.where(sums > 0, bins, BINS), axis=0)  # if rounding keeps all from reaching it
        chosen = tl.maximum(tl.max(tl.where(reached, bins, -1), axis=0), least)
        above += tl.sum(tl.where(bins == chosen, from_top, 0.0), axis=0)
        prefix = (prefix << DIGIT_BITS) | chosen
    return prefix ^ -0x80000000, above


@triton.jit
def _sample(
    x_ptr,  # float32 [rows, vocab], edited
    row_slots_ptr,  # int32 [rows]
    lens_ptr,  # int32 [rows]
    broken_ptr,  # int32 [rows]
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    num_prompt_ptr,
    bests_ptr,  # float32 [rows, tiles]
    likeliest_ptr,  # int32 [rows, tiles]
    candidates_ptr,  # float32 [rows, CANDIDATES], scratch
    tokens_ptr,  # out int64 [rows]
    vocab,
    num_tiles,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILES: tl.constexpr,  # power of two ≥ tiles
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots_ptr + row).to(tl.int64)
    if slot < 0:
        return
    broken = tl.load(broken_ptr + row)
    tl.debug_barrier()  # every warp has read it
    if broken != 0:
        tl.store(broken_ptr + row, 0)
        tl.store(tokens_ptr + row, NOT_FINITE)
        return
    x_ptr += row * vocab
    tiles = tl.arange(0, TILES)
    bests = tl.load(bests_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=-float("inf"))
    firsts = tl.load(likeliest_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=0x7FFFFFFF)
    best = tl.max(bests, axis=0)
    likeliest = tl.min(tl.where(bests == best, firsts, 0x7FFFFFFF), axis=0)
    offsets = tl.arange(0, WIDE)
    token = likeliest
    if (tl.load(temperature_ptr + slot) > 0) & (best > -float("inf")):
        floor = -float("inf")
        least_key = tl.full([], -0x80000000, tl.int32)
        top_k, top_p, min_p = tl.load(top_k_ptr + slot), tl.load(top_p_ptr + slot), tl.load(min_p_ptr + slot)
        limited = (top_k > 0) & (top_k < vocab)
        total = 0.0
        if limited | (top_p < 1):
            if limited:
                tiles_above = tl.sum((bests[None, :] >= bests[:, None]).to(tl.int32), axis=1)
                bound = tl.max(tl.where(tiles_above >= top_k, bests, -float("inf")), axis=0)
            else:
                for start in range(0, vocab, WIDE):
                    x = tl.load(x_ptr + start + offsets, mask=start + offsets < vocab, other=-float("inf"))
                    total += tl.sum(tl.exp(x - best), axis=0)
                bound = best + tl.log(0.5 * (1.0 - top_p) * total / vocab)  # half: sums are rounded
            candidates_ptr += row * CANDIDATES
            size = tl.zeros([], tl.int32)
            for start in range(0, vocab, WIDE):
                x = tl.load(x_ptr + start + offsets, mask=start + offsets < vocab, other=-float("inf"))
                kept = (x >= bound) & (start + offsets < vocab)
                place = size + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                tl.store(candidates_ptr + place, x, mask=kept & (place < CANDIDATES))
                size += tl.sum(kept.to(tl.int32), axis=0)
            tl.debug_barrier()  # others read them
            among_ptr = candidates_ptr
            if size > CANDIDATES:
                among_ptr, size = x_ptr, vocab
            if limited:
                least_key, above = _floor(among_ptr, size, best, top_k.to(tl.float32), least_key, False, TILE)
                floor = _unordered(least_key)
                # The weight of exactly k tokens: of those above the floor, and of so many at it.
                total = (top_k - above) * tl.exp(floor - best)
                for start in range(0, size, WIDE):
                    x = tl.load(among_ptr + start + offsets, mask=start + offsets < size, other=-float("inf"))
                    total += tl.sum(tl.where(x > floor, tl.exp(x - best), 0.0), axis=0)
            if top_p < 1:
                nucleus, _ = _floor(among_ptr, size, best, top_p * total, least_key, True, TILE)
                floor = tl.maximum(floor, _unordered(nucleus))
        if min_p > 0:
            floor = tl.maximum(floor, best + tl.log(min_p))
        everything = tl.zeros([], tl.float64)
        for start in range(0, vocab, WIDE):
            x = tl.load(x_ptr + start + offsets, mask=start + offsets < vocab, other=-float("inf"))
            everything += tl.sum(tl.where(x >= floor, tl.exp(x - best), 0.0).to(tl.float64), axis=0)
        position = (tl.load(lens_ptr + row) - tl.load(num_prompt_ptr + slot)).to(tl.int64)
        target = uniform(tl.load(seeds_ptr + slot), position) * everything
        before = tl.zeros([], tl.float64)
        found = tl.full([], -1, tl.int32)
        last = likeliest
        for start in range(0, vocab, WIDE):
            if found < 0:
                x = tl.load(x_ptr + start + offsets, mask=start + offsets < vocab, other=-float("inf"))
                shares = tl.where(x >= floor, tl.exp(x - best), 0.0).to(tl.float64)
                cumulative = before + tl.cumsum(shares, axis=0)
                place = tl.min(tl.where((cumulative > target) & (shares > 0), offsets, WIDE), axis=0)
                found = tl.where(place < WIDE, start + place, -1)
                possible = tl.max(tl.where(shares > 0, offsets, -1), axis=0)
                last = tl.where(possible >= 0, start + possible, last)
                before += tl.sum(shares, axis=0)
        token = tl.where(found >= 0, found, last)
    token = tl.where(best > -float("inf"), token, NO_TOKEN)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def edit(logits: Tensor, p: Parameters, rows: SampledRows) -> Bests:
    """float32 logits [rows, vocab], in place."""
    count, vocab = logits.shape
    tiles = triton.cdiv(vocab, TILE)
    bests = Bests(
        torch.empty(count, tiles, dtype=torch.float32, device=logits.device),
        torch.empty(count, tiles, dtype=torch.int32, device=logits.device),
    )
    _edit[(count, tiles)](
        logits, rows.slots, rows.lens, rows.mask_rows, rows.masks, rows.broken, p.counts, p.prompts,
        p.bias_ids, p.bias_values, p.num_biases, p.ends, p.num_ends, p.min_tokens, p.num_prompt,
        p.repetition, p.presence, p.frequency, p.temperature, *bests,
        vocab, rows.masks.shape[1], p.bias_ids.shape[1], p.ends.shape[1],
        TILE=TILE, num_warps=8,
    )  # fmt: skip
    return bests


def sample(logits: Tensor, p: Parameters, rows: SampledRows, bests: Bests, tokens: Tensor) -> None:
    """Edited float32 logits [rows, vocab] → tokens int64 [rows]."""
    (count, vocab), tiles = logits.shape, bests.logits.shape[1]
    candidates = torch.empty(count, CANDIDATES, dtype=torch.float32, device=logits.device)
    _sample[(count,)](
        logits, rows.slots, rows.lens, rows.broken, p.temperature, p.top_k, p.top_p, p.min_p, p.seeds,
        p.num_prompt, *bests, candidates, tokens, vocab, tiles,
        TILE=TILE, WIDE=WIDE, CANDIDATES=CANDIDATES, TILES=triton.next_power_of_2(tiles), num_warps=8,
    )  # fmt: skip


def as_bits(seeds: list[int]) -> Tensor:
    """Unsigned seeds → int64 of the same bits."""
    return torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64))
