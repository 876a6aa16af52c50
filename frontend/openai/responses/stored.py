"""GET and DELETE /v1/responses/{id}, and POST …/cancel: responses that can still be asked for."""

from typing import Literal
from urllib.parse import parse_qs

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest

from ...responses import send_body, send_json
from ...service import Service
from .background import UNFINISHED, Background
from .past import PastResponses, tenant_of

MOST_DIGITS = 15


class DeletedResponse(Struct, frozen=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class StoredResponses:
    """The endpoints."""

    def __init__(self, service: Service, past: PastResponses, background: Background) -> None:
        self._door = service.door
        self._past = past
        self._background = background

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        response_id, tenant = scope["path_params"]["id"], tenant_of(scope)
        stream, starting_after = _asked(scope)
        if stream:
            relay = self._background.relay(tenant, response_id, starting_after, send)
            await self._door.attend(receive, relay)
            return
        past = await self._past.find(tenant, response_id)
        if past.summary.status in UNFINISHED:
            self._background.resume(tenant, response_id)
        await send_body(send, bytes(past.response))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        response_id = scope["path_params"]["id"]
        await self._background.delete(tenant_of(scope), response_id)
        await send_json(send, DeletedResponse(response_id))

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        past = await self._background.cancel(tenant_of(scope), scope["path_params"]["id"])
        await send_body(send, bytes(past.response))


def _asked(scope: Scope) -> tuple[bool, int]:
    """Whether events are wanted, and behind which one. Raises InvalidRequest."""
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    stream = query.get("stream", ["false"])[-1].lower()
    if stream not in ("true", "false"):
        raise InvalidRequest(f"stream: {stream[:32]!r} is neither true nor false", param="stream")
    after = query.get("starting_after", [""])[-1]
    if not after:
        return stream == "true", -1
    if stream != "true":
        raise InvalidRequest("starting_after: only allowed with stream=true", param="starting_after")
    if not (after.isascii() and after.isdigit() and len(after) <= MOST_DIGITS):
        what = f"starting_after: expected the sequence_number of an event, got {after[:32]!r}"
        raise InvalidRequest(what, param="starting_after")
    return True, int(after)
