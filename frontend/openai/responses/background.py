"""Background responses: a request whose client is a file. See jobs.py for who works on one, and after whom.

    POST background ─▶ stored as queued, and answered at once
                         │ Job: the order, then its events ──▶ whoever reads along, through any frontend
                         ▼
    engine core ◀── a keyed request, as all that outlive their connection; the key follows from the id;
                         │ sent again after a while, if the queue there is full
                         │
                         ▼
    stored as in_progress ─▶ completed, incomplete, failed or cancelled; its events beside it, if it streams

Whatever dies, it goes on: after a worker or the engine core as every stream does; after a frontend when
another is asked for it, behind the last event that was written.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Self

import msgspec
from msgspec import structs
from starlette.types import Send

from protocol.errors import InvalidRequest, KeyReused, Unavailable
from protocol.messages import EngineFacts

from ...idempotency import Key
from ...jobs import BLOCK_END, JobEvents, Jobs
from ...keep_alive import KeepAlive
from ...outbox import Outbox
from ...response_store import document_name
from ...responses import EVENT_STREAM_HEADERS, send_body, send_json
from ...service import Service
from ..headers import LAST_EVENT_ID, Terms
from .order import LOOK_AGAIN_S, TOO_MANY, Order, Plan, Workshop
from .past import PastResponse, PastResponses
from .request import ResponsesRequest
from .writer import announce

CANCEL_PATIENCE_S = 10.0
EVENTS_SHARE = 4
"""The events of one response may take one part in so many of the store."""
LAST_EVENTS = (b"response.completed", b"response.incomplete", b"error")
UNFINISHED = ("queued", "in_progress")


class Background:
    """Those of one frontend, and the way to those of others."""

    def __init__(self, service: Service, past: PastResponses, plan: Plan) -> None:
        self._service = service
        self._past = past
        self._plan = plan
        self._workshop = Workshop(service, past, plan)
        store = service.response_store
        self._jobs = Jobs(f"{store.folder}/jobs", store.most_bytes // EVENTS_SHARE)

    async def start(self, request: ResponsesRequest, facts: EngineFacts, terms: Terms, send: Send) -> None:
        """Answer such a request. Raises RequestError before anything of it is stored, and Overloaded."""
        self._check(request, terms)
        key = terms.key or Key.of(terms.tenant, terms.response_id, "", "", b"")
        until = None if terms.timeout_s is None else time.monotonic() + terms.timeout_s
        order = Order(request, terms.tenant, terms.response_id, key, self._service.now(), until)
        known = await self._past.look(order.tenant, order.full_id)
        if known is None:
            planned = await self._plan(request, facts, order.terms(), order.created_at)
            job = self._jobs.create(order.name, msgspec.json.encode(order))
            queued = structs.replace(planned.begun, status="queued")
            if not await self._past.keep(order.tenant, queued, planned.items, key.digest):
                job.finish()
                job.release()
                why = "the request is larger than what is stored (--response-store-bytes)"
                raise InvalidRequest(f"background: {why}", param="background")
            if request.stream:
                first = Outbox(numbered=True, ids=True)
                announce(planned.begun, first)
                job.append(first.take(), TOO_MANY)
            self._workshop.begin(job, planned)
        elif known.digest != key.digest:
            raise KeyReused("this Idempotency-Key belongs to another request")
        if request.stream:
            await self.relay(order.tenant, order.full_id, -1, send)
        elif known is not None:
            await send_body(send, bytes(known.response))
        else:
            await send_json(send, queued)

    def resume(self, tenant: str, response_id: str) -> None:
        """See to it that somebody works on it, unless it is done."""
        if (job := self._jobs.adopt(document_name(tenant, response_id))) is not None:
            self._workshop.begin(job)

    async def cancel(self, tenant: str, response_id: str) -> PastResponse:
        """As it is then; one that is done stays as it is. Raises RequestError, or Unavailable."""
        past = await self._past.find(tenant, response_id)
        if not past.summary.background:
            raise InvalidRequest("only a response with background: true can be cancelled", param="id")
        self._jobs.cancel(document_name(tenant, response_id))
        deadline = time.monotonic() + CANCEL_PATIENCE_S
        while past.summary.status in UNFINISHED:
            if time.monotonic() > deadline:
                raise Unavailable("whoever works on this response does not react; try again")
            self.resume(tenant, response_id)
            await asyncio.sleep(LOOK_AGAIN_S)
            past = await self._past.find(tenant, response_id)
        return past

    async def delete(self, tenant: str, response_id: str) -> None:
        """With the work on it. Raises ResponseNotFound."""
        self._jobs.delete(document_name(tenant, response_id))
        await self._past.delete(tenant, response_id)

    async def relay(self, tenant: str, response_id: str, starting_after: int, send: Send) -> None:
        """Its events with greater sequence numbers, also those still to come. Raises RequestError."""
        source: JobEvents | _Done | None = self._jobs.events(document_name(tenant, response_id))
        with source or _Done(await self._stored_events(tenant, response_id)) as events:
            if events.what and not msgspec.json.decode(events.what, type=Order).request.stream:
                raise self._no_events(response_id, "it was created without stream: true")
            async with KeepAlive(send, self._service.options.sse_keep_alive_interval) as alive:
                await alive(
                    {"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS]}
                )
                async for block in self._blocks(events, tenant, response_id):
                    if _number(block) > starting_after:
                        body = _without_id(block) + BLOCK_END
                        await alive({"type": "http.response.body", "body": body, "more_body": True})
                await alive({"type": "http.response.body", "body": b"", "more_body": False})

    async def _blocks(
        self, events: "JobEvents | _Done", tenant: str, response_id: str
    ) -> AsyncIterator[bytes]:
        """All of them, as they come. Raises ResponseNotFound when they end because it is deleted."""
        last = b""
        while True:
            over = events.is_over
            blocks = events.take()
            for block in blocks:
                yield block
                last = _name(block)
            if not blocks and over:
                break
            if not blocks:
                self.resume(tenant, response_id)
                await asyncio.sleep(LOOK_AGAIN_S)
        if last not in LAST_EVENTS:
            raise self._past.not_found(response_id)

    def _check(self, request: ResponsesRequest, terms: Terms) -> None:
        if request.store is False or not self._service.response_store.enabled:
            why = "store: false" if request.store is False else "--response-store-bytes 0"
            what = f"background: not with {why}: nobody could ever ask for it"
            raise InvalidRequest(what, param="background")
        if terms.positions is not None:
            remedy = "GET /v1/responses/{id}?stream=true&starting_after=N"
            what = f"{LAST_EVENT_ID}: not with background: true; use {remedy}"
            raise InvalidRequest(what, param=LAST_EVENT_ID)

    async def _stored_events(self, tenant: str, response_id: str) -> bytes:
        """Raises RequestError."""
        events = await self._past.find_events(tenant, response_id)
        if events is None:
            past = await self._past.find(tenant, response_id)
            why = "it was created without background: true"
            if past.summary.background:
                why = "it was created without stream: true, or they had to make room for newer responses"
            raise self._no_events(response_id, why)
        return events

    def _no_events(self, response_id: str, why: str) -> InvalidRequest:
        what = f"stream: there are no events of {response_id!r}: {why}; ask for it whole"
        return InvalidRequest(what, param="stream")


class _Done:
    """Events of a job that is done, as JobEvents has those of others."""

    is_over = True
    what = b""

    def __init__(self, events: bytes) -> None:
        self._events = events

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self) -> list[bytes]:
        blocks, self._events = self._events.split(BLOCK_END)[:-1], b""
        return blocks


def _number(block: bytes) -> int:
    """Its sequence number; those that end a broken stream have none here, and are told to everyone."""
    return int(block[len(b"id: ") :].partition(b".")[0]) - 1 if block.startswith(b"id: ") else 1 << 62


def _without_id(block: bytes) -> bytes:
    """Which nobody could go on from: events of a background response are asked for by their number."""
    return block.partition(b"\n")[2] if block.startswith(b"id: ") else block


def _name(block: bytes) -> bytes:
    return _without_id(block).partition(b"\n")[0].removeprefix(b"event: ")
