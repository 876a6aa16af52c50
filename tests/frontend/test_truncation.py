"""truncation: "auto": what goes, what stays, and what a response says of it."""

from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.openai.responses.items import InputItem
from frontend.openai.responses.truncation import beginnings
from frontend.service import Service
from protocol.messages import Finish
from tests.frontend.conftest import END
from tests.frontend.fake_engine import FakeEngine
from tests.frontend.responses_schema import check_response
from tests.frontend.test_responses import prompt_of

URL = "/v1/responses"
Ids = Callable[[str], list[int]]
LONG = "zig zag " * 6


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(call_id: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": call_id, "output": LONG},
    ]


async def ask(http: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(URL, json={"truncation": "auto", "max_output_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    check_response(response.json())
    body: dict[str, Any] = response.json()
    return body


@pytest.fixture
def short(engine: FakeEngine, ids: Ids) -> FakeEngine:
    engine.answer, engine.finish = [*ids("Yes"), END], Finish.STOP
    return engine


async def test_nothing_goes_from_what_fits(http: httpx2.AsyncClient, short: FakeEngine) -> None:
    body = await ask(http, input=[user("One"), said("Two"), user("Three")])
    assert body["truncation"] == "auto"
    assert "dropped_items" not in body
    assert (await http.post(URL, json={"input": "x"})).json()["truncation"] == "disabled"


async def test_the_oldest_turns_go_and_rules_stay(
    http: httpx2.AsyncClient, service: Service, short: FakeEngine
) -> None:
    items = [user(LONG), said(LONG), {"role": "developer", "content": "Rule."}, user("Old"), said(LONG)]
    items += [user(f"{LONG}last"), said("Well."), user("Now?")]
    body = await ask(http, input=items, instructions="Be brief.")
    assert body["dropped_items"] == 4
    assert prompt_of(service, short) == (
        "<|bos|><|system|>Be brief.<|end|><|system|>Rule.<|end|>"
        f"<|user|>{LONG}last<|end|><|assistant|>Well.<|end|><|user|>Now?<|end|><|assistant|>"
    )


async def test_a_stored_conversation_is_truncated_and_stays_whole(
    http: httpx2.AsyncClient, service: Service, short: FakeEngine
) -> None:
    first = await ask(http, input=[user("One"), said(LONG), user(LONG)])
    second = await ask(http, input=LONG, previous_response_id=first["id"])
    assert second["dropped_items"] == 2
    assert prompt_of(service, short).startswith(f"<|bos|><|user|>{LONG}<|end|><|assistant|>Yes<|end|>")
    listed = (await http.get(f"{URL}/{second['id']}/input_items")).json()
    assert len(listed["data"]) == 5, "what the model has not seen is kept all the same"


async def test_the_last_turn_goes_call_by_call(
    http: httpx2.AsyncClient, service: Service, short: FakeEngine
) -> None:
    body = await ask(http, input=[user("Look."), *call("a"), *call("b"), *call("c")])
    assert body["dropped_items"] == 3
    kept = f"<|assistant|><|end|><|tool|>{LONG}<|end|>" * 2
    assert prompt_of(service, short) == f"<|bos|>{kept}<|assistant|>"


async def test_what_cannot_fit_is_refused_with_the_numbers(
    http: httpx2.AsyncClient, short: FakeEngine
) -> None:
    request = {"input": [user("One"), user("pole " * 90)], "truncation": "auto", "max_output_tokens": 100}
    error = (await http.post(URL, json=request)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "100 for the answer" in error["message"]
    request["input"] = [user("One"), user("x" * 100_000)]
    assert (await http.post(URL, json=request)).json()["error"]["code"] == "context_length_exceeded"


async def test_room_is_left_for_an_answer_of_which_nothing_is_said(
    http: httpx2.AsyncClient, short: FakeEngine
) -> None:
    short.answer = [50] * 200
    body = await ask(http, input=[user("a"), *[said("pole"), user("to")] * 60], max_output_tokens=None)
    assert body["usage"]["output_tokens"] >= short.facts.max_model_len // 8
    assert body["dropped_items"] > 0


def test_where_a_conversation_may_begin() -> None:
    reasoning = {"type": "reasoning", "summary": []}
    one, two = call("a"), call("b")
    items = [user("x"), *one, said("y"), user("z"), reasoning, one[0], two[0], one[1], two[1], said("!")]
    assert beginnings(msgspec.convert(items, list[InputItem])) == [0, 4, 5, 10]
    assert beginnings(msgspec.convert([said("y"), *call("a"), said("z")], list[InputItem])) == [0, 1, 3]
