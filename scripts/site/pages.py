"""MkDocs hooks: pages beside their code join the site; links to source files become plain text."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"protocol/README.md": "protocol.md", "models/tern-mini/README.md": "bundled-model.md"}
"""Path in the checkout → name in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(r"\[([^\]\n]+)\]\((?:\.\./)+([^)#\s]*)(#[^)\s]*)?\)", _link, markdown)


def _link(link: re.Match[str]) -> str:
    text, path, anchor = link.groups()
    name = ELSEWHERE.get(path) or path.removeprefix("docs/")
    return f"[{text}]({name}{anchor or ''})" if path in ELSEWHERE or path.startswith("docs/") else text
