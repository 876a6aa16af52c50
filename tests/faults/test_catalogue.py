"""Every scenario of the catalogue has a test, whose docstring says so: "Scenario 14: …"."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NUM_SCENARIOS = 48


def covered() -> set[int]:
    numbers: set[int] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                numbers |= set(map(int, re.findall(r"Scenario (\d+):", ast.get_docstring(node) or "")))
    return numbers


def test_every_scenario_is_covered() -> None:
    assert set(range(1, NUM_SCENARIOS + 1)) - covered() == set()
