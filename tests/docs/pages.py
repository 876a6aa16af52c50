"""The documentation's pages, and the anchors of a page as GitHub makes them from its headings."""

import re
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("*/*.md"), *ROOT.glob("models/*/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Its text without code, in which brackets are no links and `#` no headings."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def anchors(page: Path) -> set[str]:
    found: list[str] = []
    for heading in re.findall(r"(?m)^#+ (.+?)\s*$", prose(page)):
        heading = LINK.sub("]", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(slug)
    return {
        slug if index == 0 else f"{slug}-{index}" for slug, n in Counter(found).items() for index in range(n)
    }
