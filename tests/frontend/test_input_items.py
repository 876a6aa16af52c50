"""GET /v1/responses/{id}/input_items, with the real openai library."""

from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from frontend.service import Service
from tests.frontend.conftest import Serve
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine
from tests.frontend.test_responses import ITEMS, TEXT, URL, bird

__all__ = ["bird"]
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)


async def test_the_library_lists_all_pages(service: Service, serve: Serve, bird: FakeEngine) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{await serve(service)}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S
    ) as client:
        first = await client.responses.create(model="tiny", input="One")
        second = await client.responses.create(
            model="tiny", input=[{"role": "user", "content": f"{i}"} for i in range(3)],
            previous_response_id=first.id,
        )  # fmt: skip
        found = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
        newest = [item async for item in client.responses.input_items.list(second.id, limit=1)]
    texts = [item.content[0].text for item in found if item.type == "message"]  # type: ignore[union-attr]
    assert texts == ["One", TEXT, "0", "1", "2"]
    assert [item.id for item in found] == [item.id for item in reversed(newest)]
    assert len({item.id for item in found}) == 5


async def test_every_kind_of_item_has_its_shape(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    made = (await http.post(URL, json={"input": ITEMS})).json()
    listed = (await http.get(f"{URL}/{made['id']}/input_items?order=asc")).json()
    assert [item["type"] for item in listed["data"]] == [item.get("type", "message") for item in ITEMS]
    for item in listed["data"]:
        ITEM.validate_python(item, strict=True)
    assert listed["data"][2]["id"] == "rs_1", "those that have an id keep it"
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=msg_nobody", "after"),
        ("include[]=everything", "include"),
        ("include=message.output_text.logprobs", "include"),
    ],
)
async def test_what_makes_no_sense_is_named(
    http: httpx2.AsyncClient, bird: FakeEngine, query: str, param: str
) -> None:
    made = (await http.post(URL, json={"input": "x"})).json()
    response = await http.get(f"{URL}/{made['id']}/input_items?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_of_a_response_that_is_not_there(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    response = await http.get(f"{URL}/resp_0/input_items")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "response_not_found")
