"""Past responses: what the store keeps of them."""

import msgspec
from msgspec import Raw, Struct
from starlette.types import Scope

from protocol.errors import RequestError

from ...service import Service
from .items import InputItem
from .response import ResponseObject

_EVENTS = "/events"


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
    digest: str = ""
    """Of the request, if that had a key of its own."""

    def conversation(self) -> list[InputItem]:
        """With the answer."""
        return self.items + msgspec.json.decode(self.response, type=_Answer).output

    @property
    def summary(self) -> "Summary":
        return msgspec.json.decode(self.response, type=Summary)


class _Answer(Struct, frozen=True):
    output: list[InputItem]


class Summary(Struct, frozen=True):
    """Of a stored response."""

    status: str
    background: bool


class PastResponses:
    """What clients may still ask for. A response belongs to the API key that it was made with."""

    def __init__(self, service: Service) -> None:
        self._store = service.response_store

    async def keep(
        self, tenant: str, response: ResponseObject, items: list[InputItem], digest: str = ""
    ) -> bool:
        """`items`: those that it answers. False: there is no room."""
        document = msgspec.json.encode(PastResponse(Raw(msgspec.json.encode(response)), items, digest))
        return await self._store.put(tenant, response.id, document)

    async def find(self, tenant: str, response_id: str, param: str | None = None) -> PastResponse:
        """Raises ResponseNotFound, at the fault of `param`."""
        past = await self.look(tenant, response_id)
        if past is None:
            raise self.not_found(response_id, param)
        return past

    async def look(self, tenant: str, response_id: str) -> PastResponse | None:
        """None: it is not there."""
        document = await self._store.get(tenant, response_id)
        return None if document is None else msgspec.json.decode(document, type=PastResponse)

    async def keep_events(self, tenant: str, response_id: str, events: bytes) -> None:
        """If there is room."""
        await self._store.put(tenant, f"{response_id}{_EVENTS}", events)

    async def find_events(self, tenant: str, response_id: str) -> bytes | None:
        """None: they are not there."""
        return await self._store.get(tenant, f"{response_id}{_EVENTS}")

    async def delete(self, tenant: str, response_id: str) -> None:
        """With its events. Raises ResponseNotFound."""
        await self._store.delete(tenant, f"{response_id}{_EVENTS}")
        if not await self._store.delete(tenant, response_id):
            raise self.not_found(response_id)

    def not_found(self, response_id: str, param: str | None = None) -> ResponseNotFound:
        why = "it was not stored, or had to make room for newer ones (--response-store-bytes)"
        if not self._store.enabled:
            why = "this server stores none (--response-store-bytes 0)"
        remedy = "send the conversation itself as input"
        return ResponseNotFound(f"there is no response {response_id!r}: {why}; {remedy}", param=param)


def tenant_of(scope: Scope) -> str:
    """Whose request it is: a name for its API key."""
    tenant: str = scope.get("state", {}).get("tenant", "")
    return tenant
