"""A real Chromium without a window, and the playground in it as its users have it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

DEADLINE_MS = 60_000
"""For anything that a test waits for: far more than it takes, even on a machine that is busy."""
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = Path(__file__).parent / "screenshots"
DESKTOP, PHONE = (1280, 800), (360, 740)


def chromium() -> str:
    """Its path. Skips the module that asks where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        remedy = "sudo ./scripts/browser, or install Chromium"
        pytest.skip(
            f"no browser on this machine, so the playground is not tested: {remedy}", allow_module_level=True
        )
    return found


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Playground:
    """One page of it, and what its console says: nothing may go wrong there but what the server refuses."""

    def __init__(
        self, browser: Browser, base_url: str, *, scheme: str = "light", phone: bool = False
    ) -> None:
        width, height = PHONE if phone else DESKTOP
        self.context: BrowserContext = browser.new_context(
            base_url=base_url,
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": height},
            device_scale_factor=2 if phone else 1,
            has_touch=phone,
            is_mobile=phone,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.set_default_timeout(DEADLINE_MS)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _listen(self, message: ConsoleMessage) -> None:
        refused = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not refused:
            self.problems.append(message.text)

    def __enter__(self) -> "Playground":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        assert kind is not None or self.problems == []

    # ── what a user does ────────────────────────────────────────────────────────────────────────

    def open(self, key: str, path: str = "/") -> "Playground":
        self.page.goto(path)
        self.give_key(key)
        self.page.locator("#status[data-state=ready]").wait_for()
        return self

    def give_key(self, key: str) -> None:
        self.page.get_by_label("Key", exact=True).fill(key)
        self.page.get_by_role("button", name="Use it").click()

    def set(self, **fields: str) -> None:
        """Parameters, by the ids of their fields."""
        for name, value in fields.items():
            field = self.page.locator(f"#{name}")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)

    def send(self, text: str) -> Locator:
        """The answer, which may still be coming."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_label("Message", exact=True).press("Enter")
        return self.page.locator(".answer").last

    def ask(self, text: str) -> Locator:
        """The whole answer."""
        answer = self.send(text)
        self.done(answer)
        return answer

    def done(self, answer: Locator) -> None:
        self.page.locator(".answer[aria-busy]").wait_for(state="detached")
        answer.locator(".actions").wait_for()

    def go(self, page: str) -> None:
        self.page.get_by_role("navigation").get_by_role("link", name=page).click()

    # ── what a user sees ────────────────────────────────────────────────────────────────────────

    def text(self, answer: Locator) -> str:
        return answer.locator("> .text").text_content() or ""

    def fact(self, answer: Locator, kind: str) -> str:
        return answer.locator(f"[data-fact={kind}]").text_content() or ""

    def picture(self, name: str, *, whole: bool = False) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole, animations="disabled")
