"""Counter-based random numbers: one uniform number per (seed, output position), without any state.

A position that is replayed after a crash draws the same number, whatever ran beside it. The generator
is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) entered at
the position: stream start = mix(seed), state = start + (position + 1) · γ, output = mix(state).
"""

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits; arrays of equal length."""
    mixed = _mix(_mix(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    numbers: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
