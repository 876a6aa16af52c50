"""Playground: the page at / and /live, and its files in static/. The same bytes for everybody.

The page holds nothing of this server, so it needs no key; all that it shows it asks for, with the user's key.
It runs only its own scripts, talks only to where it came from, and nobody may frame it.
"""

import functools
import hashlib
from pathlib import Path

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from .responses import Header, send_body

FOLDER = Path(__file__).parent / "static"
PAGE = "index.html"
PAGE_PATHS = ("/", "/live")
"""It shows the tab that its address names."""
FILES_PATH = "/playground/"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"connect-src 'self'",
        b"img-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",
        b"trusted-types 'none'",
    )
)
"""Text that a model writes cannot become a script: even assigning it to innerHTML throws."""
HEADERS: list[Header] = [
    (b"cache-control", b"no-cache"),  # keep it, and ask each time whether it is still the same
    (b"content-security-policy", POLICY),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


class StaticFile(Struct, frozen=True):
    """One file, served from memory."""

    body: bytes
    content_type: bytes
    etag: bytes

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked_for: bytes = scope.get("raw_path") or b""
        if scope["path"] == "/" and not asked_for.endswith(
            b"/"
        ):  # behind a root path: the page's links are relative
            location = asked_for.rpartition(b"/")[2] + b"/"
            await send_body(send, b"", 307, [(b"location", location)], self.content_type)
            return
        headers = [*HEADERS, (b"etag", self.etag)]
        asked = [value for name, value in scope["headers"] if name == b"if-none-match"]
        tags = {tag.strip().removeprefix(b"W/") for line in asked for tag in line.split(b",")}
        if self.etag in tags:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send_body(send, self.body, headers=headers, content_type=self.content_type)


@functools.cache
def load() -> dict[str, StaticFile]:
    """By path."""
    files = {file.name: _read(file) for file in sorted(FOLDER.iterdir()) if file.suffix in TYPES}
    page = files.pop(PAGE)
    return dict.fromkeys(PAGE_PATHS, page) | {FILES_PATH + name: file for name, file in files.items()}


def _read(file: Path) -> StaticFile:
    body = file.read_bytes()
    return StaticFile(body, TYPES[file.suffix], b'"%b"' % hashlib.sha256(body).hexdigest()[:20].encode())
