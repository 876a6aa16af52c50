"""The uniform numbers of worker/randomness.py on the device: SplitMix64 entered at (seed, output position).

Bit for bit the same as there, since it is integers until the last multiplication, by a power of two.
"""

import triton
import triton.language as tl


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
