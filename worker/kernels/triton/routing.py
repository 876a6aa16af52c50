"""Which experts compute each token, and in which order their work is taken. Two launches, whatever the sizes.

    pick   a router's logits → softmax, the top_k largest, weights that sum to 1 or not; a program per token
    sort   tokens · top_k pairs by expert, stable, and where each expert's begin; a program per expert, which
           counts those of experts before it and puts its own in their places

Nothing is read back and grids follow from shapes, so both stand in a graph. Of equal probabilities the first
expert is picked. A token that is not a number gets weights that are none, and experts that exist.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 1024
"""Pairs that a program looks at together."""


class Picked(NamedTuple):
    weights: Tensor
    """float32 [tokens, top_k]"""
    experts: Tensor
    """int32 [tokens, top_k], of falling probability"""


class Sorted(NamedTuple):
    pairs: Tensor
    """int32 [tokens * top_k] in order of experts; pair p is token p // top_k, its expert number p % top_k"""
    starts: Tensor
    """int32 [experts + 1]"""


@triton.jit
def _pick(
    logits_ptr,  # [tokens, experts]
    weights_ptr,  # out float32 [tokens, TOP_K]
    experts_ptr,  # out int32 [tokens, TOP_K]
    num_experts,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,  # power of two ≥ TOP_K
    EXPERTS: tl.constexpr,  # power of two ≥ experts
    RENORMALIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, EXPERTS)
    there = experts < num_experts
    logits = tl.load(logits_ptr + token * num_experts + experts, mask=there, other=-float("inf"))
    logits = logits.to(tl.float32)
    p = tl.exp(logits - tl.max(logits, axis=0))
    p /= tl.sum(p, axis=0)
    left = tl.where(there, tl.where(p == p, p, -1.0), -3.0)  # what is no number comes after what is one
    slots = tl.arange(0, SLOTS)
    weights, picked = tl.zeros([SLOTS], tl.float32), tl.zeros([SLOTS], tl.int32)
    for i in tl.static_range(TOP_K):
        best = tl.argmax(left, axis=0)
        weights = tl.where(slots == i, tl.sum(tl.where(experts == best, p, 0.0), axis=0), weights)
        picked = tl.where(slots == i, best, picked)
        left = tl.where(experts == best, -2.0, left)
    if RENORMALIZE:
        weights /= tl.sum(weights, axis=0)
    tl.store(weights_ptr + token * TOP_K + slots, weights, mask=slots < TOP_K)
    tl.store(experts_ptr + token * TOP_K + slots, picked, mask=slots < TOP_K)


@triton.jit(do_not_specialize=["num_pairs"])
def _sort(
    experts_ptr,  # int32 [pairs]
    pairs_ptr,  # out int32 [pairs]
    starts_ptr,  # out int32 [experts + 1]
    num_pairs,
    AT_ONCE: tl.constexpr,
):
    expert = tl.program_id(0)
    before = 0
    for start in range(0, num_pairs, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        found = tl.load(experts_ptr + at, mask=at < num_pairs, other=2147483647)
        before += tl.sum((found < expert).to(tl.int32), axis=0)
    tl.store(starts_ptr + expert, before)
    for start in range(0, num_pairs, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        found = tl.load(experts_ptr + at, mask=at < num_pairs, other=2147483647)
        own = (found == expert).to(tl.int32)
        tl.store(pairs_ptr + before + tl.cumsum(own, axis=0) - 1, at, mask=own > 0)
        before += tl.sum(own, axis=0)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, before)


def pick(logits: Tensor, top_k: int, *, renormalize: bool) -> Picked:
    """logits [tokens, experts]"""
    tokens, experts = logits.shape
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    _pick[(tokens,)](
        logits, weights, chosen, experts, TOP_K=top_k, SLOTS=triton.next_power_of_2(top_k),
        EXPERTS=triton.next_power_of_2(experts), RENORMALIZE=renormalize, num_warps=1,
    )  # fmt: skip
    return Picked(weights, chosen)


def sort(chosen: Tensor, num_experts: int) -> Sorted:
    """chosen int32 [tokens, top_k], the experts of each token."""
    count = chosen.numel()
    pairs = torch.empty(count, dtype=torch.int32, device=chosen.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=chosen.device)
    at_once = min(AT_ONCE, max(triton.next_power_of_2(count), 32))
    _sort[(num_experts,)](chosen, pairs, starts, count, AT_ONCE=at_once, num_warps=4)
    return Sorted(pairs, starts)


def pick_reference(logits: Tensor, top_k: int, *, renormalize: bool) -> Picked:
    weights, chosen = logits.float().softmax(-1).topk(top_k)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return Picked(weights, chosen.int())


def sort_reference(chosen: Tensor, num_experts: int) -> Sorted:
    by_expert, pairs = chosen.flatten().long().sort(stable=True)
    starts = torch.searchsorted(by_expert, torch.arange(num_experts + 1, device=chosen.device))
    return Sorted(pairs.int(), starts.int())
