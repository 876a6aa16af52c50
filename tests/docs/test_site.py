"""scripts/docs: the site is built, broken links and anchors are errors, and nothing comes from elsewhere."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import DOCS

CONFIG = ROOT / "scripts" / "site" / "mkdocs.yml"


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """As scripts/docs does."""
    command = ["mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(to)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(CONFIG, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_it(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page
    protocol = (site / "protocol.html").read_text()
    assert "Epochs" in protocol
    assert 'href="protocol.html"' in (site / "how-it-works.html").read_text(), "the page beside its code"
    assert 'href="../' not in protocol


def test_it_needs_no_network(site: Path) -> None:
    for page in site.glob("*.html"):
        for loaded in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text()):
            assert "//" not in loaded, f"{page.name}: {loaded}"


def test_broken_links_and_anchors_are_errors(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n[x](nowhere.md) [y](#no-heading)\n")
    lines = CONFIG.read_text().partition("\nnav:")[0].splitlines()
    kept = [line for line in lines if not line.startswith(("docs_dir", "site_dir", "hooks"))]
    (tmp_path / "mkdocs.yml").write_text("\n".join(kept))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "#no-heading" in done.stderr
