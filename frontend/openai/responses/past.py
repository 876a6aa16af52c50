"""Past responses: what the store keeps of them, and GET and DELETE /v1/responses/{id}."""

from urllib.parse import parse_qs

import msgspec
from msgspec import Raw, Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import RequestError, Unsupported

from ...responses import send_body, send_json
from ...service import Service
from .items import InputItem
from .response import ResponseObject


class ResponseNotFound(RequestError):
    """It was never stored, was deleted, or had to make room for newer ones."""

    code = "response_not_found"
    status = 404


class PastResponse(Struct, frozen=True, array_like=True):
    """As it is stored."""

    response: Raw
    """JSON of the response object."""
    items: list[InputItem]
    """The conversation that it answers, without instructions."""

    def conversation(self) -> list[InputItem]:
        """With the answer."""
        return self.items + msgspec.json.decode(self.response, type=_Answer).output


class _Answer(Struct, frozen=True):
    output: list[InputItem]


class DeletedResponse(Struct, frozen=True):
    id: str
    object: str = "response"
    deleted: bool = True


class PastResponses:
    """What clients may still ask for. A response belongs to the API key that it was made with."""

    def __init__(self, service: Service) -> None:
        self._store = service.response_store

    async def keep(self, tenant: str, response: ResponseObject, items: list[InputItem]) -> bool:
        """`items`: those that it answers. False: there is no room."""
        document = msgspec.json.encode(PastResponse(Raw(msgspec.json.encode(response)), items))
        return await self._store.put(tenant, response.id, document)

    async def find(self, tenant: str, response_id: str, param: str | None = None) -> PastResponse:
        """Raises ResponseNotFound, at the fault of `param`."""
        document = await self._store.get(tenant, response_id)
        if document is None:
            raise self._not_found(response_id, param)
        return msgspec.json.decode(document, type=PastResponse)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if query.get("stream", ["false"])[-1].lower() != "false":
            raise Unsupported("stream: a past response comes whole; leave it out", param="stream")
        past = await self.find(tenant_of(scope), scope["path_params"]["id"])
        await send_body(send, bytes(past.response))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        response_id = scope["path_params"]["id"]
        if not await self._store.delete(tenant_of(scope), response_id):
            raise self._not_found(response_id)
        await send_json(send, DeletedResponse(response_id))

    def _not_found(self, response_id: str, param: str | None = None) -> ResponseNotFound:
        why = "it was not stored, or had to make room for newer ones (--response-store-bytes)"
        if not self._store.enabled:
            why = "this server stores none (--response-store-bytes 0)"
        remedy = "send the conversation itself as input"
        return ResponseNotFound(f"there is no response {response_id!r}: {why}; {remedy}", param=param)


def tenant_of(scope: Scope) -> str:
    """Whose request it is: a name for its API key."""
    tenant: str = scope.get("state", {}).get("tenant", "")
    return tenant
