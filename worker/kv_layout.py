"""KVLayout: which block table each layer uses, and which part of a block is its own. Knows no tensors.

windows  512 512 512 512 512 None  512 512 …           22 × 512, 4 × None: blocks of 4 layers, 7 groups
group      0   0   0   0   1   2     1   1
place      0   1   2   3   0   0     1   2             group 1's layers 4, 6, 7, 8 share its blocks
"""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.kv_groups import KVGroup

Window = int | None
"""Tokens that a token sees, itself included; None: all before it."""

FULL_WEIGHT = 4
"""A layer that sees all holds so many times the KV of one with a window, at a context of four windows: a
place that is left over in its group is so much worse."""
TABLE_COST = 1 / 64
"""Of all KV: what a table less is worth, for the work of its growth."""


@dataclass(frozen=True)
class KVLayout:
    groups: tuple[KVGroup, ...]
    group_of: tuple[int, ...]
    """Of each layer."""
    place_of: tuple[int, ...]
    """Of each layer, within a block of its group."""
    num_places: int
    """Layers in a block."""


def lay_out(windows: Sequence[Window]) -> KVLayout:
    """Groups of the layers with these windows, each with as many layers; some may have places left over."""
    counts = {window: windows.count(window) for window in dict.fromkeys(windows)}

    def num_groups(places: int) -> int:
        return sum(-(-count // places) for count in counts.values())

    def cost(places: int) -> float:
        full = -(-counts.get(None, 0) // places)
        weight = num_groups(places) + (FULL_WEIGHT - 1) * full
        return places * weight * (1 + TABLE_COST * num_groups(places))

    num_places = min(range(1, max(counts.values()) + 1), key=cost)
    groups: list[KVGroup] = []
    filling: dict[Window, tuple[int, int]] = {}
    spots: list[tuple[int, int]] = []
    for window in windows:
        group, place = filling.get(window, (0, num_places))
        if place == num_places:
            group, place = len(groups), 0
            groups.append(KVGroup(window))
        filling[window] = group, place + 1
        spots.append((group, place))
    return KVLayout(
        tuple(groups), tuple([group for group, _ in spots]), tuple([place for _, place in spots]), num_places
    )
