"""What the pages name exists: tests and files."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import DOCS

SECURITY = DOCS / "security.md"
TESTED = [page for page in sorted(DOCS.glob("*.md")) if "`tests/" in page.read_text()]
OURS = ("protocol/", "frontend/", "engine_core/", "worker/", "scripts/", "docs/")


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    path = ""
    for given, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", page.read_text()):
        path = given or path
        functions = ast.walk(ast.parse((ROOT / path).read_text()))
        assert name in {getattr(node, "name", "") for node in functions}, f"{path}::{name}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for file in re.findall(r"`([a-z_]+/[\w/]+\.\w+)`", page.read_text()):
        assert not file.startswith(OURS) or (ROOT / file).exists(), file


def test_every_defence_has_its_test() -> None:
    rows = re.findall(
        r"(?m)^\| [^|]+ \| ((?:`[^|]*`|all packages)[^|]*) \| ([^|]+) \|$", SECURITY.read_text()
    )
    assert len(rows) >= 28
    for _, tests in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", tests), tests
