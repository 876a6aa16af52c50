"""Log-probabilities of the chosen token and of the likeliest ones, without a sort or a softmax in memory.

    summarize   per row and stretch of the vocabulary: largest logit, Σ exp, its k likeliest, in order
    merge       per row: the stretches' k · stretches candidates → the k likeliest; logsumexp; the chosen

Float32. Equal logits come in the order of their ids. k is at most 32; the logits are read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 4096
"""Logits of one program."""
MOST = 32


@triton.jit
def _summarize(
    logits_ptr,  # float32 [rows, vocab]
    values_ptr,  # out float32 [rows, stretches, K]
    ids_ptr,  # out int32 [rows, stretches, K]
    sums_ptr,  # out float32 [rows, stretches, 2]: largest logit, Σ exp(logit - largest)
    vocab,
    K: tl.constexpr,
    STRETCH: tl.constexpr,
):
    row, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = stretch * STRETCH + tl.arange(0, STRETCH)
    x = tl.load(logits_ptr + row * vocab + ids, mask=ids < vocab, other=-float("inf"))
    place = row * tl.num_programs(1) + stretch
    best = tl.max(x, axis=0)
    shift = tl.where(best > -float("inf"), best, 0.0)
    tl.store(sums_ptr + place * 2, best)
    tl.store(sums_ptr + place * 2 + 1, tl.sum(tl.exp(x - shift), axis=0))
    left = ids < vocab
    for i in range(K):
        largest = tl.max(tl.where(left, x, -float("inf")), axis=0)
        first = tl.min(tl.where(left & (x == largest), ids, 0x7FFFFFFF), axis=0)
        tl.store(values_ptr + place * K + i, largest)
        tl.store(ids_ptr + place * K + i, first)
        left = left & (ids != first)


@triton.jit
def _merge(
    values_ptr,  # float32 [rows, candidates]
    ids_ptr,  # int32 [rows, candidates]
    sums_ptr,  # float32 [rows, stretches, 2]
    logits_ptr,  # float32 [rows, vocab]
    tokens_ptr,  # int64 [rows]
    chosen_ptr,  # out float32 [rows]
    top_values_ptr,  # out float32 [rows, K]
    top_ids_ptr,  # out int32 [rows, K]
    vocab,
    num_stretches,
    num_candidates,
    K: tl.constexpr,
    STRETCHES: tl.constexpr,  # power of two ≥ stretches
    CANDIDATES: tl.constexpr,  # power of two ≥ candidates
):
    row = tl.program_id(0).to(tl.int64)
    stretches = tl.arange(0, STRETCHES)
    there = stretches < num_stretches
    at = (row * num_stretches + stretches) * 2
    bests = tl.load(sums_ptr + at, mask=there, other=-float("inf"))
    sums = tl.load(sums_ptr + at + 1, mask=there, other=0.0)
    best = tl.max(bests, axis=0)
    total = tl.log(tl.sum(sums * tl.exp(bests - best), axis=0)) + best
    token = tl.load(tokens_ptr + row)
    tl.store(chosen_ptr + row, tl.load(logits_ptr + row * vocab + token) - total)
    candidates = tl.arange(0, CANDIDATES)
    left = candidates < num_candidates
    x = tl.load(values_ptr + row * num_candidates + candidates, mask=left, other=-float("inf"))
    ids = tl.load(ids_ptr + row * num_candidates + candidates, mask=left, other=0x7FFFFFFF)
    left = ids < vocab  # a stretch with fewer than K logits has no such candidate
    for i in range(K):
        largest = tl.max(tl.where(left, x, -float("inf")), axis=0)
        first = tl.min(tl.where(left & (x == largest), ids, 0x7FFFFFFF), axis=0)
        tl.store(top_values_ptr + row * K + i, largest - total)
        tl.store(top_ids_ptr + row * K + i, first)
        left = left & (ids != first)


def top_logprobs(logits: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 logits [rows, vocab], int64 tokens [rows], 1 ≤ k ≤ 32, k ≤ vocab →

    float32 [rows] of those tokens, and of the likeliest: float32 [rows, k], ids int32 [rows, k].
    """
    rows, vocab = logits.shape
    stretches, device = triton.cdiv(vocab, STRETCH), logits.device
    values = torch.empty(rows, stretches, k, dtype=torch.float32, device=device)
    ids = torch.empty(rows, stretches, k, dtype=torch.int32, device=device)
    sums = torch.empty(rows, stretches, 2, dtype=torch.float32, device=device)
    _summarize[(rows, stretches)](logits, values, ids, sums, vocab, K=k, STRETCH=STRETCH, num_warps=8)
    chosen = torch.empty(rows, dtype=torch.float32, device=device)
    top = torch.empty(rows, k, dtype=torch.float32, device=device)
    top_ids = torch.empty(rows, k, dtype=torch.int32, device=device)
    _merge[(rows,)](
        values, ids, sums, logits, tokens, chosen, top, top_ids, vocab, stretches, stretches * k,
        K=k, STRETCHES=triton.next_power_of_2(stretches), CANDIDATES=triton.next_power_of_2(stretches * k),
        num_warps=4,
    )  # fmt: skip
    return chosen, top, top_ids


def reference(logits: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.log_softmax(-1)
    order = logprobs.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), logprobs.gather(1, order), order.int()
