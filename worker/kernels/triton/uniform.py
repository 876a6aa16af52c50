"""The uniform numbers of worker/randomness.py on the device: SplitMix64 entered at (seed, output position).

Bit for bit the same as there, since it is integers until the last multiplication, by a power of two.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ...randomness import uniform as on_the_host


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def uniform(seed, position):
    """int64 (the bits of an unsigned seed), int64 → float64 in [0, 1)."""
    step = (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    mixed = _mix(_mix(seed.to(tl.uint64, bitcast=True)) + step)
    return (mixed >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _uniforms(
    seeds_ptr,  # int64 [n]
    positions_ptr,  # int64 [n]
    out_ptr,  # out float64 [n]
    n,
    TILE: tl.constexpr,
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = at < n
    seeds = tl.load(seeds_ptr + at, mask=there, other=0)
    positions = tl.load(positions_ptr + at, mask=there, other=0)
    tl.store(out_ptr + at, uniform(seeds, positions), mask=there)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """int64 [n] each → float64 [n]"""
    out = torch.empty(len(seeds), dtype=torch.float64, device=seeds.device)
    _uniforms[(triton.cdiv(len(seeds), 256),)](seeds, positions, out, len(seeds), TILE=256)
    return out


def reference(seeds: Tensor, positions: Tensor) -> Tensor:
    return torch.from_numpy(on_the_host(seeds.numpy().view(np.uint64), positions.numpy()))
