"""Order: a background response that is to be made, and Workshop, which makes it.

What comes of it goes into its job's file, if somebody may want to read its events, and into the store: as
queued by whoever took the order, as in_progress with the first token, and as it is in the end. While the
engine core has no room for it, it stays queued.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from protocol.errors import InternalError, Overloaded, RequestError, TernError, Unavailable
from protocol.messages import EngineFacts

from ...idempotency import Key
from ...jobs import Job
from ...outbox import Outbox
from ...response_store import document_name
from ...responses import OpenAIErrors
from ...service import Service
from ...streams import Generation, Prompt, Wish
from ..headers import Terms
from .items import InputItem
from .past import PastResponses, ResponseNotFound
from .request import ResponsesRequest
from .response import ResponseError, ResponseObject
from .writer import ResponseWriter

log = logging.getLogger("tern.frontend")

LOOK_AGAIN_S = 0.05
"""How often somebody who waits for a job looks at its file."""
RETRY_S = 1.0
"""Until an order is sent again that found the engine core's queue full, if that does not say how long."""


class TooManyEvents(RequestError):
    """A response goes on, but nobody can read along any more."""

    code = "too_many_events"


class ResponseCancelled(RequestError):
    """Somebody cancelled the response whose events these are."""

    code = "response_cancelled"


TOO_MANY = b"event: error\n" + OpenAIErrors().last_event(
    TooManyEvents("the events are too many to be kept (--response-store-bytes); ask for the response whole"),
    "",
)


class PlannedResponse(NamedTuple):
    """What a request comes to. `begin` makes the writer of its answer."""

    prompt: Prompt
    wish: Wish
    begun: ResponseObject
    items: list[InputItem]
    begin: Callable[[Generation, Outbox], ResponseWriter]


Plan = Callable[[ResponsesRequest, EngineFacts, Terms, int], Awaitable[PlannedResponse]]
"""Also takes when the response was created."""


class Order(Struct, frozen=True):
    """Of a job, as JSON."""

    request: ResponsesRequest
    tenant: str
    response_id: str
    """Without the prefix of its kind."""
    key: Key
    """Also of the request to the engine core."""
    created_at: int
    until: float | None
    """Its deadline, by the clock that all processes of a machine share."""

    @property
    def full_id(self) -> str:
        return f"resp_{self.response_id}"

    @property
    def name(self) -> str:
        """Of its job."""
        return document_name(self.tenant, self.full_id)

    def terms(self) -> Terms:
        """For whoever works on it now."""
        left = None if self.until is None else max(self.until - time.monotonic(), 0.001)
        return Terms(tenant=self.tenant, response_id=self.response_id, key=self.key, timeout_s=left)


class Workshop:
    """Of one frontend."""

    def __init__(self, service: Service, past: PastResponses, plan: Plan) -> None:
        self._service = service
        self._past = past
        self._plan = plan
        self._working: set[asyncio.Task[None]] = set()

    def begin(self, job: Job, planned: PlannedResponse | None = None) -> None:
        """Work on it, beside whatever else there is. `planned`: if it is planned already."""
        work = asyncio.ensure_future(self._work(job, planned))
        self._working.add(work)
        work.add_done_callback(self._working.discard)

    async def _work(self, job: Job, planned: PlannedResponse | None) -> None:
        """To its end. Cancelled when this process ends; then the job is left to others."""
        order = msgspec.json.decode(job.what, type=Order)
        try:
            if await self._is_done(job, order, planned):
                job.finish()
        finally:
            job.release()

    async def _is_done(self, job: Job, order: Order, planned: PlannedResponse | None) -> bool:
        """Do it. False: it is left to others."""
        making = asyncio.ensure_future(self._make(job, order, planned))
        try:
            while not making.done():
                await asyncio.wait((making,), timeout=LOOK_AGAIN_S)
                if _unwanted(job):
                    making.cancel()
                    await asyncio.wait((making,))
        except asyncio.CancelledError:
            making.cancel()
            await asyncio.wait((making,))
            raise
        if making.cancelled():  # before anything had come of it
            await self._change(order, status="cancelled")
        elif isinstance(error := making.exception(), Unavailable):
            log.info("response %s is left to others: %s", order.full_id, error)
            return False
        elif error is not None:
            shown = error if isinstance(error, TernError) else _defect(order, error)
            await self._change(order, status="failed", error=ResponseError("server_error", shown.message))
        if job.is_deleted:
            await self._forget(order)
        elif order.request.stream:
            await self._past.keep_events(order.tenant, order.full_id, job.events())
        return True

    async def _make(self, job: Job, order: Order, planned: PlannedResponse | None) -> None:
        """Raises what is wrong before there is a writer that could tell of it."""
        if planned is None:
            facts = await self._service.door.admit()
            planned = await self._plan(order.request, facts, order.terms(), order.created_at)
        while not await self._is_made(job, order, planned):
            pass

    async def _is_made(self, job: Job, order: Order, planned: PlannedResponse) -> bool:
        """Ask the engine core. False: it had no room, and has had time to find some."""
        outbox = Outbox(numbered=True, ids=True, known=job.position)
        with Generation(self._service, [planned.prompt], planned.wish) as generation:
            writer = planned.begin(generation, outbox)
            try:
                try:
                    await self._write(job, order, planned, generation, writer, outbox)
                except Overloaded as error:
                    if writer.begun:
                        raise
                    generation.choices[0].close("error")
                    await asyncio.sleep(error.retry_after_s or RETRY_S)
                    return False
                return True
            except asyncio.CancelledError:
                if not _unwanted(job):
                    raise
                for choice in generation.choices:
                    choice.close()  # the engine core, too, need not go on
                last = writer.cancelled(ResponseCancelled(f"{order.full_id} was cancelled"))
            except TernError as error:
                last = writer.last_words(error, "")
            except Exception as error:
                last = writer.last_words(_defect(order, error), "")
            self._tell(job, order, last)
            if not job.is_deleted:
                await self._past.keep(order.tenant, writer.response, planned.items, order.key.digest)
            return True

    async def _write(
        self,
        job: Job,
        order: Order,
        planned: PlannedResponse,
        generation: Generation,
        writer: ResponseWriter,
        outbox: Outbox,
    ) -> None:
        """The whole answer, as it comes. Raises what ends it early."""
        async for piece in generation.choices[0]:
            if not writer.begun:
                await self._past.keep(order.tenant, planned.begun, planned.items, order.key.digest)
                if job.is_deleted:  # while it was queued
                    await self._forget(order)
            writer.write(piece)
            self._tell(job, order, outbox.take())
        await writer.end()
        self._tell(job, order, outbox.take())

    def _tell(self, job: Job, order: Order, events: bytes) -> None:
        if order.request.stream:
            job.append(events, TOO_MANY)

    async def _change(self, order: Order, **changes: object) -> None:
        past = await self._past.find(order.tenant, order.full_id)
        response = msgspec.json.decode(past.response, type=ResponseObject)
        response = structs.replace(response, **changes)
        await self._past.keep(order.tenant, response, past.items, past.digest)

    async def _forget(self, order: Order) -> None:
        with suppress(ResponseNotFound):
            await self._past.delete(order.tenant, order.full_id)


def _unwanted(job: Job) -> bool:
    return job.is_cancelled or job.is_deleted


def _defect(order: Order, error: BaseException) -> InternalError:
    """Of ours; what it says may quote the prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("response %s: %s\n%s", order.full_id, type(error).__name__, where)
    return InternalError("internal error; the server's log has the cause")
