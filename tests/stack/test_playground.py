"""The playground in a real browser, over the whole stack with the bundled model. Screenshots are kept."""

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Locator, Route, expect

from tests.stack.browser import Playground
from tests.stack.conftest import Stack
from tests.stack.playground import HEADERS, KEY, MODEL, Open, browser, playground, show, stack

__all__ = ["browser", "playground", "show", "stack"]

MONTHS = "Recite the months of the year."
LONG = {
    "type": "array",
    "minItems": 240,
    "maxItems": 240,
    "items": {"type": "integer", "minimum": 10, "maximum": 99},
}
"""An answer of a thousand tokens, from a model that would say a hundred."""
EVIL = "<img src=x onerror=window.pwned=1><script>window.pwned=1</script><b>bold</b>"


def ask_the_api(stack: Stack, **body: Any) -> str:
    """What a client without a browser gets."""
    answer = httpx2.post(
        f"{stack.base_url}/v1/chat/completions",
        json={"model": MODEL, **body},
        headers=HEADERS,
        timeout=60,
    )
    return str(answer.json()["choices"][0]["message"]["content"])


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def set_schema(playground: Playground, schema: object) -> None:
    playground.set(format="json_schema", schema=json.dumps(schema), temperature="0")


def test_it_asks_for_the_key_and_keeps_it_in_memory_only(show: Open) -> None:
    playground = show()
    page = playground.page
    page.goto("/")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("kept in this page's memory")
    playground.picture("key")
    playground.give_key("wrong")
    expect(dialog).to_contain_text("is not one of this server's")
    playground.give_key(KEY)
    page.locator("#status[data-state=ready]").wait_for()
    expect(page.get_by_label("Model")).to_have_value(MODEL)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    dialog.wait_for()


def test_an_answer_is_the_one_that_the_api_gives(playground: Playground, stack: Stack) -> None:
    page = playground.page
    playground.picture("light-welcome")
    box = page.get_by_label("Message", exact=True)
    box.fill("one")
    box.press("Shift+Enter")
    assert box.input_value() == "one\n"
    assert page.locator(".message").count() == 0
    playground.set(temperature="0", seed="7", system="Be brief.")
    answer = playground.ask(MONTHS)
    system = [{"role": "system", "content": "Be brief."}]
    expected = ask_the_api(stack, messages=system + user(MONTHS), temperature=0)
    assert playground.text(answer) == expected
    assert "tokens" in playground.fact(answer, "tokens")
    assert "first after" in playground.fact(answer, "ttft")
    assert "tokens/s" in playground.fact(answer, "speed")
    playground.ask("Who are you?")
    assert page.locator(".message").count() == 4
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0


def test_copy_as_curl_is_a_command_that_works(playground: Playground) -> None:
    playground.set(temperature="0")
    answer = playground.ask(MONTHS)
    answer.get_by_role("button", name="curl").click()
    answer.locator("button[data-copied]").wait_for()
    command = playground.page.evaluate("navigator.clipboard.readText()")
    assert KEY not in command
    environment = {**os.environ, "TERN_API_KEY": KEY}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    assert "data: [DONE]" in done.stdout
    said = "".join(c["delta"].get("content", "") for event in events for c in event["choices"])
    assert said == playground.text(answer)


def strike_within_an_answer(playground: Playground, strike: Callable[[], object], sign: str) -> Locator:
    """An answer in the middle of which something happens, which has `sign` then.

    One that is over before it happens does not count: it is a matter of a second.
    """
    for _ in range(4):
        answer = playground.send("Numbers!")
        answer.locator("> .text:not(:empty)").wait_for()
        strike()
        answer.locator(f"{sign}, .actions:visible").first.wait_for()
        if answer.locator(sign).count():
            return answer
    pytest.fail("each answer was over too soon")


def test_an_answer_streams_until_escape_stops_it(playground: Playground, stack: Stack) -> None:
    set_schema(playground, LONG)
    keyboard = playground.page.keyboard
    answer = strike_within_an_answer(playground, lambda: keyboard.press("Escape"), "[data-fact=finish]")
    playground.done(answer)
    assert playground.fact(answer, "finish") == "stopped"
    with pytest.raises(json.JSONDecodeError):
        json.loads(playground.text(answer))
    with httpx2.Client(base_url=stack.base_url, headers=HEADERS, timeout=60) as client:
        stack.program.wait_until(
            lambda: client.get("/live/state").json()["counters"]["num_running"] == 0, "aborted"
        )


def test_an_answer_follows_a_schema(playground: Playground) -> None:
    page = playground.page
    page.get_by_label("Answer", exact=True).select_option("json_schema")
    playground.set(schema="{")
    playground.send("Dehul from Cairo is 80.")
    expect(page.locator("#schema-error")).to_contain_text("The schema cannot be read")
    assert page.locator(".message").count() == 0, "nothing was sent"
    page.get_by_role("button", name="Reset").click()
    playground.set(format="json_schema", temperature="0")
    answer = playground.ask("Extract name, age and city as JSON: Dehul from Cairo is 80.")
    found = json.loads(playground.text(answer))
    assert set(found) == {"name", "age", "city"}
    assert isinstance(found["age"], int)
    assert playground.fact(answer, "json") == "valid JSON"
    playground.picture("light-schema")


def test_the_token_view_shows_what_else_might_have_been(playground: Playground) -> None:
    page = playground.page
    page.get_by_label("Token view").check()
    playground.set(temperature="1.5", seed="5", max_tokens="60")
    answer = playground.ask("Tell me a story about Anna, Oslo and a storm.")
    tokens = answer.locator(".token")
    assert tokens.count() > 20
    assert playground.text(answer)
    doubts = tokens.evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--doubt')))")
    assert all(0 <= doubt <= 1 for doubt in doubts)
    doubtful = doubts.index(max(doubts))
    card = page.get_by_role("tooltip")
    tokens.nth(doubtful).hover()
    expect(card).to_be_visible()
    assert card.get_by_role("listitem").count() in (6, 7)
    assert card.locator(".chosen").count() == 1
    playground.picture("light-tokens")
    tokens.nth(3).focus()
    shown = card.locator("b").text_content()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(4)).to_be_focused()
    assert card.locator("b").text_content() != shown


TOOLS = [{"type": "function", "function": {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}}]  # fmt: skip


def test_a_tool_call_is_a_card_that_takes_its_result(playground: Playground) -> None:
    playground.set(tools=json.dumps(TOOLS), temperature="0")
    answer = playground.ask("Weather in Oslo?")
    card = answer.locator(".call")
    expect(card.locator("b")).to_have_text("get_weather")
    assert json.loads(card.locator("pre").text_content() or "") == {"city": "Oslo"}
    assert playground.fact(answer, "finish") == "waits for the tool"
    playground.picture("light-tool-call")
    answer.get_by_label("What get_weather gives").fill('{"temperature": 21}')
    answer.get_by_role("button", name="Send results").click()
    told = playground.page.locator(".answer").nth(1)
    playground.done(told)
    assert playground.text(told) == "It is 21 degrees in Oslo."


def say(playground: Playground, *deltas: dict[str, str], finish: str | None = None) -> Locator:
    """The answer to a question to which the server says just this."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks = [
        {"choices": [choice]} for choice in [*choices, {"index": 0, "delta": {}, "finish_reason": finish}]
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    playground.page.route("**/v1/chat/completions", fulfil)
    return playground.ask("What do you say?")


def test_reasoning_is_collapsed(playground: Playground) -> None:
    answer = say(playground, {"reasoning_content": "Hm. "}, {"reasoning_content": "Yes."}, {"content": "42"})
    assert playground.text(answer) == "42"
    thought = answer.get_by_text("Hm. Yes.")
    expect(thought).to_be_hidden()
    answer.get_by_text("Reasoning").click()
    expect(thought).to_be_visible()


def test_an_answer_that_is_cut_or_empty_says_so(playground: Playground) -> None:
    cut = say(playground, {"content": "and th"}, finish="length")
    assert playground.fact(cut, "finish") == "cut off at the limit"
    assert cut.locator(".note-line").count() == 0
    empty = say(playground, finish="stop")
    expect(empty.locator(".note-line")).to_have_text("The answer is empty.")


MARKDOWN = """# Terns

They fly **far**, *very* far, and `tern(2) * 3 * 4` is code. 2 * 3 * 4 is not <b>bold</b>.

1. from pole
2. to pole
   - and back,
     every year

| bird | km |
|------|----|
| tern | 70,000 |

```python
def fly(n: int) -> str:
    return "<img src=x onerror=window.pwned=1>" * n
```

> It is the **longest** migration. [Read on](javascript:window.pwned=1)
"""


def test_markdown_becomes_elements_and_nothing_else(playground: Playground) -> None:
    pieces = [{"content": MARKDOWN[i : i + 7]} for i in range(0, len(MARKDOWN), 7)]
    answer = say(playground, *pieces)
    written = answer.locator(".written")
    expect(written.get_by_role("heading", name="Terns")).to_be_visible()
    assert written.locator("strong").all_text_contents() == ["far", "longest"]
    assert written.locator("em").all_text_contents() == ["very"]
    assert written.locator("p code").all_text_contents() == ["tern(2) * 3 * 4"]
    expect(written).to_contain_text("2 * 3 * 4 is not <b>bold</b>.")
    marks = written.locator("li").evaluate_all("all => all.map(one => one.dataset.mark)")
    assert marks == ["1.", "2.", "•"]
    assert written.locator("li").last.text_content() == "and back,\nevery year"
    assert written.locator("td").all_text_contents() == ["tern", "70,000"]
    code = written.locator("pre").text_content() or ""
    assert code.splitlines()[1] == '    return "<img src=x onerror=window.pwned=1>" * n'
    assert written.locator("b, img, a, script").count() == 0
    assert playground.page.evaluate("window.pwned") is None
    playground.picture("light-markdown")
    answer.get_by_role("button", name="Copy").click()
    answer.locator("button[data-copied]").wait_for()
    assert playground.page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_errors_are_said_plainly_and_the_chat_goes_on(playground: Playground) -> None:
    set_schema(playground, {"type": "nonsense"})
    answer = playground.ask("Hello")
    expect(answer.locator(".note-line.bad")).to_contain_text("nonsense")
    assert playground.fact(answer, "finish") == "failed"
    playground.picture("light-error")
    playground.set(format="text", max_tokens="999999")
    refused = playground.ask("Hello")
    expect(refused.locator(".note-line.bad")).to_contain_text("max_tokens")
    playground.set(max_tokens="")
    refused.get_by_role("button", name="Again").click()
    answer = playground.page.locator(".answer").last
    playground.done(answer)
    assert playground.text(answer)
    playground.page.route("**/v1/chat/completions", lambda route: route.abort())
    lost = playground.ask("Hello")
    expect(lost.locator(".note-line.bad")).to_have_text("The server cannot be reached.")


def test_what_users_and_models_write_stays_text(playground: Playground) -> None:
    page = playground.page
    page.get_by_label("Token view").check()
    set_schema(playground, {"const": EVIL})
    answer = playground.ask(f"Repeat: {EVIL}")
    assert json.loads(playground.text(answer)) == EVIL
    answer.locator(".token").nth(2).hover()
    page.get_by_label("Token view").uncheck()
    answer = playground.ask(EVIL)
    assert json.loads(playground.text(answer)) == EVIL
    assert page.locator(".user .text").last.text_content() == EVIL
    assert page.locator("#messages").locator("img, script, b").count() == 0
    assert page.evaluate("window.pwned") is None
    thrown = page.evaluate(
        "try { document.body.innerHTML = '<b>x</b>'; 'parsed' } catch (error) { error.name }"
    )
    assert thrown == "TypeError", "the policy forbids markup from text altogether"
    playground.problems = [one for one in playground.problems if "TrustedHTML" not in one]


def test_a_killed_worker_is_a_note_and_an_event_and_not_a_lost_token(
    playground: Playground, stack: Stack
) -> None:
    page = playground.page
    set_schema(playground, LONG)
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": LONG}}
    expected = ask_the_api(stack, messages=user("Numbers!"), temperature=0, response_format=response_format)
    answer = strike_within_an_answer(playground, lambda: stack.kill("worker"), ".note-line")
    notes = answer.locator(".note-line")
    expect(notes.first).to_contain_text("Worker was killed by SIGKILL, 1 stream waiting")
    playground.picture("light-killed")
    playground.done(answer)
    assert playground.text(answer) == expected
    assert len(json.loads(expected)) == 240
    expect(notes.last).to_contain_text("1 stream resumed")
    assert answer.locator(".note-line.bad").count() == 0
    playground.go("Engine")
    events = page.locator("#events")
    expect(events).to_contain_text("Worker was killed by SIGKILL, 1 stream waiting")
    expect(events).to_contain_text("1 stream resumed")
    page.goto("/live")
    playground.give_key(KEY)
    expect(events).to_contain_text("1 stream resumed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(show: Open, scheme: str) -> None:
    playground = show(scheme=scheme, phone=True).open(KEY)
    page = playground.page
    too_wide = "document.documentElement.scrollWidth > innerWidth"
    playground.picture(f"phone-{scheme}-welcome")
    page.get_by_label("Token view").check()
    answer = playground.ask(MONTHS)
    answer.locator(".token").nth(5).tap()
    expect(page.get_by_role("tooltip")).to_be_visible()
    playground.picture(f"phone-{scheme}-chat")
    assert not page.evaluate(too_wide)
    page.get_by_role("button", name="Parameters").click()
    expect(page.get_by_label("System prompt")).to_be_focused()
    playground.picture(f"phone-{scheme}-parameters")
    page.keyboard.press("Escape")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    playground.go("Engine")
    assert not page.evaluate(too_wide)


def test_dark(show: Open) -> None:
    playground = show(scheme="dark").open(KEY)
    playground.picture("dark-welcome")
    playground.page.get_by_label("Token view").check()
    playground.set(temperature="1.5", seed="3", max_tokens="60")
    answer = playground.ask("Tell me a story about Anna, Oslo and a storm.")
    answer.locator(".token").nth(12).hover()
    playground.picture("dark-tokens")
