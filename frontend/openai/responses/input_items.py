"""GET /v1/responses/{id}/input_items: the items that a past response answers, a page at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from urllib.parse import parse_qs

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest, Unsupported

from ...responses import send_json
from .items import InputItem, InputPart
from .past import PastResponses, tenant_of
from .request import LOGPROBS, Include

DEFAULT_LIMIT, MOST_LIMIT = 20, 100


class ItemList(Struct, frozen=True):
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class InputItems:
    """The endpoint."""

    def __init__(self, past: PastResponses) -> None:
        self._past = past

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        limit, newest_first = _limit(query), _newest_first(query)
        _check_include(query)
        past = await self._past.find(tenant_of(scope), scope["path_params"]["id"])
        items = past.items[::-1] if newest_first else past.items
        rest = items[_first(query, items) :]
        shown = [as_listed(item) for item in rest[:limit]]
        ids = [str(one["id"]) for one in shown] or [""]
        await send_json(send, ItemList(shown, ids[0], ids[-1], len(rest) > limit))


def as_listed(item: InputItem) -> dict[str, Any]:
    """With all that its kind has in OpenAI's document."""
    kind = item.type or "message"
    listed: dict[str, Any] = {"id": item.id or "", "type": kind}
    match kind:
        case "message":
            content = (
                [InputPart(type="text", text=item.content)] if isinstance(item.content, str) else item.content
            )
            parts = [_part(part, item.role == "assistant") for part in content or ()]
            return {**listed, "role": item.role, "status": "completed", "content": parts}
        case "reasoning":
            parts = [{"type": "reasoning_text", "text": part.text or ""} for part in _parts(item.content)]
            summary = [{"type": "summary_text", "text": part.text or ""} for part in item.summary or ()]
            return {**listed, "summary": summary, "content": parts}
        case "function_call":
            call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments or "{}"}
            return {**listed, **call, "status": "completed"}
        case _:
            output = (
                item.output
                if isinstance(item.output, str)
                else [_part(one, False) for one in item.output or ()]
            )
            return {**listed, "call_id": item.call_id, "output": output, "status": "completed"}


def _part(part: InputPart, said: bool) -> dict[str, Any]:
    """`said`: by the assistant."""
    if part.type == "refusal" and said:
        return {"type": "refusal", "refusal": part.refusal or ""}
    text = part.text or part.refusal or ""
    return (
        {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        if said
        else {"type": "input_text", "text": text}
    )


def _parts(content: str | list[InputPart] | None) -> Sequence[InputPart]:
    return [InputPart(type="text", text=content)] if isinstance(content, str) else content or ()


def _limit(query: Mapping[str, list[str]]) -> int:
    given = query.get("limit", [str(DEFAULT_LIMIT)])[-1]
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= MOST_LIMIT):
        raise InvalidRequest(f"limit: expected 1 … {MOST_LIMIT}, got {given[:32]!r}", param="limit")
    return int(given)


def _newest_first(query: Mapping[str, list[str]]) -> bool:
    given = query.get("order", ["desc"])[-1]
    if given not in ("asc", "desc"):
        raise InvalidRequest(f"order: {given[:32]!r} is neither asc nor desc", param="order")
    return given == "desc"


def _first(query: Mapping[str, list[str]], items: Sequence[InputItem]) -> int:
    """Where the page begins."""
    after = query.get("after", [""])[-1]
    if not after:
        return 0
    for i, item in enumerate(items):
        if item.id == after:
            return i + 1
    raise InvalidRequest(
        f"after: there is no item {after[:128]!r} among those of this response", param="after"
    )


def _check_include(query: Mapping[str, list[str]]) -> None:
    for one in [*query.get("include", ()), *query.get("include[]", ())]:
        if one not in get_args(Include):
            choices = ", ".join(get_args(Include))
            raise InvalidRequest(f"include: {one[:64]!r} is not one of {choices}", param="include")
        if one == LOGPROBS:
            raise Unsupported(
                "include: items of a conversation are kept without log-probabilities", param="include"
            )
