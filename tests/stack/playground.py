"""Fixtures of the playground's tests: the stack with the bundled model and a key, and pages in a browser."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx2
import pytest
from playwright.sync_api import Browser

from tests.stack.browser import Playground, chromium, launched
from tests.stack.conftest import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Program

BROWSER = chromium()
KEY = "a-secret-key"
HEADERS = {"authorization": f"Bearer {KEY}"}
MODEL = "tern-mini"


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, launcher: "Callable[[Path], Callable[..., Program]]"
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("playground")
    flags = ["--port", "0", "--run-dir", str(folder / "run"), "--threads", "1", "--num-kv-blocks", "1200"]
    program = launcher(folder)("scripts.cli", "serve", *flags, TERN_API_KEY=KEY)
    stack = Stack(program, folder / "run")
    yield stack
    with httpx2.stream("GET", f"{stack.base_url}/live/events", headers=HEADERS, timeout=60) as listening:
        next(listening.iter_lines())
        assert stack.ends(signal.SIGTERM) == 0, "a page that listens does not keep the server"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched(BROWSER) as browser:
        yield browser


Open = Callable[..., Playground]


@pytest.fixture
def show(browser: Browser, stack: Stack) -> Iterator[Open]:
    """show(scheme=…, phone=…) is a new page that has not been opened yet."""
    with ExitStack() as pages:
        yield lambda **how: pages.enter_context(Playground(browser, stack.base_url, **how))


@pytest.fixture
def playground(show: Open) -> Playground:
    return show().open(KEY)
