"""The page of the live engine in a real browser, while other people's requests run. Screenshots are kept."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.stack.conftest import Stack
from tests.stack.playground import KEY, MODEL, Open, browser, show, stack

__all__ = ["browser", "show", "stack"]

CROWD = """
import asyncio, sys, httpx2
url, key, model = sys.argv[1:]
system = {"role": "system", "content": "You answer at length, and never end before you must. " * 8}

async def one(client, number):
    story = f"Tell me a story about Anna {number}, Oslo and a storm. " * (1 + number % 5)
    body = {"model": model, "messages": [system, {"role": "user", "content": story}], "ignore_eos": True}
    while True:
        await client.post("/v1/chat/completions", json={**body, "max_tokens": 240 + 50 * number})

async def main():
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(one(client, number) for number in range(12)))

asyncio.run(main())
"""
"""Other people's requests, in a process of their own."""


@pytest.fixture
def crowd(stack: Stack) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", CROWD, stack.base_url, KEY, MODEL], stderr=subprocess.DEVNULL
    )
    yield
    process.kill()
    process.wait()


@pytest.mark.usefixtures("crowd")
def test_the_engine_page_shows_what_runs(show: Open, stack: Stack) -> None:
    playground = show().open(KEY, "/live")
    page = playground.page
    eighth = page.locator("#requests tr[data-stage=decoding]").nth(7)
    eighth.wait_for()
    expect(page.locator("#figure-speed")).not_to_have_text("0")
    expect(page.locator("#figure-running")).not_to_have_text("0")
    stack.kill("engine_core")
    expect(page.locator("#events")).to_contain_text(re.compile(r"Engine core restarted, \d+ streams resumed"))
    eighth.wait_for()
    assert "1200 in all" in (page.locator("#blocks").get_attribute("aria-label") or "")
    page.locator("#blocks").hover(position={"x": 4, "y": 4})
    expect(page.locator("#blocks-readout")).to_contain_text("block 0:")
    page.locator("#steps").hover(position={"x": 460, "y": 150})
    expect(page.locator("#steps-readout")).to_contain_text("step ")
    playground.picture("light-engine")
    page.emulate_media(color_scheme="dark")
    eighth.wait_for()
    playground.picture("dark-engine")
    page.set_viewport_size({"width": 360, "height": 740})
    eighth.wait_for()
    playground.picture("phone-dark-engine", whole=True)
