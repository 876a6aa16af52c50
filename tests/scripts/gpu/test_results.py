import json
from pathlib import Path

import pytest

from scripts.gpu.results import Measurement, Results, median


def results() -> Results:
    return Results("NVIDIA H200 (SXM)", "2026-01-31", "abc1234", {"torch": "2.11.0", "triton": "3.6.0"})


def test_ratios_of_times_and_rates() -> None:
    assert Measurement("a", "b", 4.0, "ms", "lower", limit=3.0).ratio == pytest.approx(0.75)
    assert Measurement("a", "b", 3.0, "TB/s", "higher", limit=4.0).ratio == pytest.approx(0.75)
    assert Measurement("a", "b", 3.0, "TB/s", "higher").ratio is None


def test_the_table_tells_value_floor_ratio_goal_and_spread() -> None:
    found = results()
    found.measurements.append(Measurement("decode", "8B", 4.0, "ms", "lower", 3.6, 0.9, (3.9, 4.2)))
    found.left_out["batches"] = "the time was up"
    table = found.table()
    assert "| decode | 8B | 4 (3.9 – 4.2) | ms | 3.6 | 0.90 (goal 0.90) |" in table
    assert "tests: not run" in table
    assert "left out: batches: the time was up" in table
    assert "commit abc1234, torch 2.11.0, triton 3.6.0" in table


def test_the_file_has_everything_under_a_plain_name(tmp_path: Path) -> None:
    found = results()
    found.measurements.append(Measurement("decode", "8B", 4.0, "ms", "lower", 3.0, spread=(3.5, 4.5)))
    path = found.save(tmp_path / "results")
    assert path.name == "nvidia-h200-sxm-2026-01-31.json"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    content = json.loads(path.read_text())
    assert content["measurements"][0]["ratio"] == 0.75
    assert content["measurements"][0]["spread"] == [3.5, 4.5]
    assert content["gpu"] == "NVIDIA H200 (SXM)"


def test_medians() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
