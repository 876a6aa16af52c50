"""Every relative link of the documentation leads to a file that is there, and to a heading of it."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import DOCS, LINK, PAGES, anchors, prose


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.exists(), f"{target}: there is no {to}"
        assert not anchor or anchor in anchors(to), f"{target}: {sorted(anchors(to))}"


def test_every_page_can_be_found() -> None:
    """From the index, in one step; the README shows all of them, too."""
    for start in (DOCS / "index.md", ROOT / "README.md"):
        linked = {
            (start.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(start))
        }
        assert set(DOCS.glob("*.md")) - {DOCS / "index.md"} - linked == set(), start


def test_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What it *is*\n```sh\n# no heading\n```\n## `a_b`, c\n## [Two](x.md) words\n## Two words\n"
    )
    assert anchors(page) == {"what-it-is", "a_b-c", "two-words", "two-words-1"}
