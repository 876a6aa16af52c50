"""`tern bench context`: what it measures adds up, and what does not fit is left out."""

from xml.etree import ElementTree

import msgspec
import pytest

from protocol.options import CacheOptions, ModelOptions
from scripts.bench.context import measure, picture, report
from scripts.bench.plot import Line, plot
from scripts.model_path import BUNDLED


def test_cells_that_fit_are_measured_beside_what_reading_takes() -> None:
    options = ModelOptions(model=str(BUNDLED))
    cache = CacheOptions(block_size=32, kv_cache_memory=1 << 20, kv_cache_dtype="int8")
    one = measure(options, [40], [1], 2, cache)
    memory = 2 * -(-(40 + 3) // cache.block_size) * cache.block_size * one.token_bytes
    growth = measure(options, [40, 80], [1, 2], 2, msgspec.structs.replace(cache, kv_cache_memory=memory))
    assert [(cell.batch, cell.context) for cell in growth.cells] == [(1, 40), (2, 40), (1, 80)]
    for cell in growth.cells:
        read = growth.weights_bytes + cell.batch * cell.context * growth.token_bytes
        assert cell.read_s == pytest.approx(read / growth.bytes_per_s)
        assert cell.seconds > 0
    table = report(growth).splitlines()
    assert table[-1].startswith("| 2 |")
    assert table[-1].endswith("| – |")
    svg = ElementTree.fromstring(picture(growth, "a < b"))
    texts = ["".join(node.itertext()) for node in svg.iter() if node.tag.endswith("text")]
    assert {"a < b", "1 sequence", "2 sequences", "64"} <= set(texts)


def test_a_plot_has_its_points_where_the_axes_say() -> None:
    svg = ElementTree.fromstring(plot("t", "x", "y", [Line("l", [(2, 1), (8, 100), (4, 10)])]))
    dots = [(float(n.attrib["cx"]), float(n.attrib["cy"])) for n in svg.iter() if n.tag.endswith("circle")]
    (left, bottom), (right, top), middle = dots
    assert left < right
    assert top < bottom, "y grows upwards"
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.2), "axes are logarithmic"
