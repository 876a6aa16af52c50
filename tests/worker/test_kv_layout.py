"""Which layers share a table, and what of a block is whose."""

import pytest

from protocol.kv_groups import KVGroup
from worker.kv_layout import Window, lay_out


def gemma3(num_layers: int) -> list[Window]:
    """Every sixth layer sees all."""
    return [None if index % 6 == 5 else 512 for index in range(num_layers)]


@pytest.mark.parametrize("window", [None, 4096])
def test_layers_of_one_kind_are_one_group(window: Window) -> None:
    layout = lay_out([window] * 32)
    assert layout.groups == (KVGroup(window),)
    assert layout.group_of == (0,) * 32
    assert layout.place_of == tuple(range(32))
    assert layout.num_places == 32


@pytest.mark.parametrize(
    ("num_layers", "num_places", "num_groups"), [(18, 3, 6), (26, 4, 7), (34, 5, 7), (48, 8, 6), (62, 11, 6)]
)
def test_published_sizes_of_gemma_3(num_layers: int, num_places: int, num_groups: int) -> None:
    """One table of the layers that see all, and hardly a place left over."""
    layout = lay_out(gemma3(num_layers))
    assert (layout.num_places, len(layout.groups)) == (num_places, num_groups)
    assert layout.groups.count(KVGroup()) == 1
    assert num_places * num_groups <= 1.15 * num_layers


@pytest.mark.parametrize(
    "windows", [gemma3(26), [3, None], [1, 2, 3, None, 1, 2, 3], [None] * 30 + [8], [8] * 30 + [None]]
)
def test_each_layer_has_a_place_of_its_own(windows: list[Window]) -> None:
    layout = lay_out(windows)
    spots = list(zip(layout.group_of, layout.place_of, strict=True))
    assert len(set(spots)) == len(windows)
    assert max(layout.place_of) < layout.num_places
    assert [layout.groups[group].window for group in layout.group_of] == windows
    assert set(layout.group_of) == set(range(len(layout.groups)))
