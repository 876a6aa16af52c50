"""The playground's files: types and headers, what they may do in a browser, and that they can be absent."""

import re
import subprocess
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from hatchling.build import build_wheel

from frontend.playground import FOLDER, PAGE_PATHS, TYPES, load
from frontend.service import Service
from tests.frontend.conftest import asgi_client

MakeService = Callable[..., Service]


@pytest.mark.parametrize("path", sorted(load()))
async def test_each_file_is_served_and_kept(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 200
    name = "index.html" if path in PAGE_PATHS else path.rpartition("/")[2]
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"].encode() == TYPES[Path(name).suffix]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    policy = dict(
        rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    etag = response.headers["etag"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}'):
        again = await http.get(path, headers={"if-none-match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await http.get(path, headers={"if-none-match": '"other"'})).status_code == 200


async def test_it_needs_no_key_and_knows_none(make_service: MakeService) -> None:
    async with asgi_client(make_service(api_key=("secret",))) as client:
        for path in load():
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/playground/index.html")).status_code == 401
        assert (await client.get("/playground/../keys.py")).status_code == 401


async def test_it_can_be_switched_off(make_service: MakeService) -> None:
    async with asgi_client(make_service(playground=False)) as client:
        for path in (*load(), "/live/state", "/live/events"):
            assert (await client.get(path)).status_code == 404
        assert "/live/state" not in (await client.get("/openapi.json")).json()["paths"]
    async with asgi_client(make_service(playground=False, api_key=("secret",))) as client:
        assert (await client.get("/")).status_code == 401


async def test_behind_a_root_path_its_links_lead_somewhere(make_service: MakeService) -> None:
    async with asgi_client(make_service(root_path="/a/llm")) as client:
        moved = await client.get("/a/llm")
        assert moved.status_code == 307
        assert str(moved.url.join(moved.headers["location"])) == "http://tern/a/llm/"
        for path in ("/a/llm/", "/a/llm/live", "/a/llm/playground/app.js", "/", "/playground/app.js"):
            assert (await client.get(path)).status_code == 200


def _luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("ink", "ground"), ("ink", "paper"), ("ink", "soft"), ("muted", "ground"), ("muted", "paper"),
        ("bill", "paper"), ("bill-ink", "bill"), ("good", "ground"),
    ],
)  # fmt: skip
def test_text_has_contrast(scheme: int, text: str, ground: str) -> None:
    """At least 4.5 to 1."""
    block = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


class _Page(HTMLParser):
    """What the page refers to, and what the policy would forbid."""

    def __init__(self) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on") or name == "style"], (tag, found)
        assert tag != "style"
        self.refers += [str(value) for name, value in attrs if name in ("src", "href")]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "label" and found.get("for"):
            self.labelled.add(str(found["for"]))
        if tag in ("input", "select", "textarea") and "aria-label" not in found:
            self.fields.append(str(found.get("id")))


def test_the_page_needs_nothing_that_is_not_served() -> None:
    page = _Page()
    page.feed((FOLDER / "index.html").read_text())
    served = set(load())
    for reference in page.refers:
        assert reference in {".", "live"} or f"/{reference}" in served, reference
    assert len(page.ids) == len(set(page.ids))
    assert set(page.fields) <= page.labelled, "every field has a label"
    for script in FOLDER.glob("*.js"):
        text = script.read_text()
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert f"/playground/{name}" in served, f"{script.name} imports {name}"
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Storage"):
            assert banned not in text, f"{script.name} uses {banned}"
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), (
            f"{script.name} names another host"
        )


def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    """As `pip install .` builds it."""
    root = FOLDER.parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        name = build_wheel(str(tmp_path))
    names = set(zipfile.ZipFile(tmp_path / name).namelist())
    assert {f"frontend/static/{file.name}" for file in FOLDER.iterdir()} <= names
    tracked = subprocess.run(["git", "check-ignore", str(FOLDER)], cwd=root, capture_output=True)
    assert tracked.returncode != 0
