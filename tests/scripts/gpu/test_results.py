import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.gpu.plots import plots
from scripts.gpu.results import At, Measurement, Results, median


def results() -> Results:
    versions = {"driver": "580.1", "torch": "2.11.0", "triton": "3.6.0"}
    return Results(gpu="NVIDIA H200 (SXM)", date="2026-01-31", commit="abc1234", versions=versions)


def milliseconds(value: float, limit: float | None, at: At | None = None) -> Measurement:
    return Measurement(part="decode", name="8B", value=value, unit="ms", limit=limit, at=at)


def test_ratios_of_times_and_rates() -> None:
    assert milliseconds(4.0, 3.0).ratio == pytest.approx(0.75)
    assert milliseconds(4.0, None).ratio is None
    rate = Measurement(part="a", name="b", value=3.0, unit="TB/s", better="higher", limit=4.0)
    assert rate.ratio == pytest.approx(0.75)


def test_the_table_tells_value_floor_ratio_goal_and_spread() -> None:
    found = results()
    found.measurements += [
        milliseconds(5.0, None),
        Measurement(part="prefill", name="8B", value=1.0, unit="ms"),
        Measurement(part="decode", name="8B", value=4.0, unit="ms", limit=3.6, goal=0.9, spread=(3.9, 4.2)),
    ]
    found.left_out["batches"] = "it takes some 40 s, and 12 s were left"
    found.failed["kernels"] = "RuntimeError: no"
    table = found.table()
    assert table.splitlines()[-3:] == [
        "| decode | 8B | 5 | ms |  |  |  |",
        "| decode | 8B | 4 (3.9 – 4.2) | ms | 3.6 | 0.90 | 0.90 |",
        "| prefill | 8B | 1 | ms |  |  |  |",
    ]
    assert "left out: batches: it takes some 40 s, and 12 s were left" in table
    assert "failed: kernels: RuntimeError: no" in table
    assert "commit abc1234, driver 580.1, torch 2.11.0, triton 3.6.0" in table


def test_the_file_has_everything_under_a_plain_name(tmp_path: Path) -> None:
    found = results()
    found.measurements.append(milliseconds(4.0, 3.0))
    path = found.save(tmp_path / "results")
    assert path.name == "nvidia-h200-sxm-2026-01-31.json"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    content = json.loads(path.read_text())
    assert content["measurements"][0]["ratio"] == 0.75
    assert content["versions"]["driver"] == "580.1"
    assert content["gpu"] == "NVIDIA H200 (SXM)"


def test_a_plot_for_each_axis_along_which_a_line_leads() -> None:
    found = results()
    found.measurements += [
        milliseconds(8.0, 5.0, At("sequences", 32, "8B bf16")),
        milliseconds(4.0, 3.0, At("sequences", 1, "8B bf16")),
        milliseconds(2.0, 1.0, At("sequences", 1, "1B bf16")),
        milliseconds(9.0, 1.0, At("tokens", 1024, "8B bf16")),
    ]
    ((name, svg),) = plots(found)
    assert name == "sequences-ms"
    picture = ElementTree.fromstring(svg)
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "8B bf16" in texts
    assert "1B bf16" not in texts
    assert "stroke-dasharray" in svg


def test_medians() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
