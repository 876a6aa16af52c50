"""Desk: where requests come, change hands and go. Each one that was taken leaves with one last message.

    Submit ──▶ known and the same? ──yes──▶ its rows again, from where the client is
                 │ no                          (a message was lost, or a kept request is taken over)
                 └──▶ fits, and there is room? ──▶ scheduler
    finished · aborted · failed · deadline · client gone  ──▶  off the scheduler, last message sent

Knows nothing of steps or workers.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

from protocol.config import EngineCoreConfig
from protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KeyReused,
    NotAttached,
    TernError,
    Unavailable,
)
from protocol.messages import Abort, EngineMessage, Finish, Leave, Refused, Submit

from .admission import check, check_room
from .clients import Client
from .finishing import already_finished
from .grammar import Grammars
from .kept import Kept
from .meter import Meter
from .request import Request, State
from .scheduler import Scheduler
from .transcript import Transcript

MOST_UNTRIED = 32
"""Clients, before it is ever tried whether all of them are still there."""


class Outbox(Protocol):
    """The way to a client."""

    def send(self, peer: bytes, message: EngineMessage) -> bool:
        """Queue a message. False: the peer is gone, or has stopped consuming."""


class Desk:
    """`scheduler` is None until a worker has said what it can do."""

    def __init__(
        self,
        config: EngineCoreConfig,
        outbox: Outbox,
        meter: Meter,
        clock: Callable[[], float],
        grammars: Grammars,
    ) -> None:
        self.scheduler: Scheduler | None = None
        self.clients: dict[bytes, Client] = {}
        self.nobody = Client(b"", "nobody", 0)
        """Reads what has no client for the moment."""
        self.kept = Kept(config.detach_grace_s)
        self.resubmissions = 0
        self.crashed_requests = 0
        self._options = config.scheduler
        self._outbox = outbox
        self._meter = meter
        self._clock = clock
        self._grammars = grammars
        self._deadlines: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()
        self._most_untried = MOST_UNTRIED

    # ── coming ──────────────────────────────────────────────────────────────────────────────────

    def submit(self, peer: bytes, submit: Submit) -> Request | None:
        """Take a request, or refuse it. Returns it if it is new."""
        try:
            return self._submit(self.clients.get(peer), submit)
        except (TernError, ValueError) as error:
            known_error = error if isinstance(error, TernError) else InvalidRequest(str(error))
            self.refuse(peer, submit.request_id, known_error)
            return None

    def _submit(self, client: Client | None, submit: Submit) -> Request | None:
        scheduler = self.scheduler
        if client is None or scheduler is None:
            raise NotAttached("attach first, and wait for Attached")
        request = Request(client, submit, scheduler.facts, next(self._arrivals))
        live = client.requests.get(submit.request_id)
        kept = self.kept.find(submit.tenant, submit.key)
        if kept is not None and kept is not live and kept.digest != submit.digest:
            raise KeyReused(
                "this Idempotency-Key belongs to another request: use a new one for a new request"
            )
        known = kept or live
        if known is not None or submit.resumed_token_ids:
            self.resubmissions += 1
        if known is not None and _goes_on(known, request):
            self._hand_over(known, request)
            return None
        check(submit, request, scheduler.facts, grammars=self._grammars.available)
        if known is not None and known is live:
            self._drop(known)
        elif known is not None:
            self.fail(known, Unavailable("another connection has taken over"))
        if not submit.again:
            wait = self._meter.retry_after_s(len(scheduler.waiting), self._clock())
            check_room(request, scheduler.waiting, self._options, scheduler.facts, wait)
        if submit.timeout_s is not None:
            request.deadline = self._clock() + submit.timeout_s
            if len(self._deadlines) > 2 * sum(len(one.requests) for one in self.clients.values()) + 1000:
                self._deadlines = [one for one in self._deadlines if one[2].state is not State.ENDED]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (request.deadline, request.arrival, request))
        if request.key:
            self.kept.add(request)
        if submit.sampling.logprobs is not None or submit.sampling.prompt_logprobs is not None:
            request.transcript = Transcript(request.num_output_tokens)
        if finish := already_finished(request):
            request.finish, request.state = finish, State.ENDED
            client.add_end(request, finish)
            self._keep(request)
            return request
        client.requests[request.request_id] = request
        request.waiting_since = self._clock()
        scheduler.add(request)
        if request.grammar is not None:
            self._grammars.begin(request, scheduler.facts)
        return request

    def begun(self, requests: Iterable[Request]) -> None:
        """A step computes a part of their prompts."""
        for request in requests:
            if request.begun_at is None:
                request.begun_at = self._clock()
                self._meter.queue_times.record(request.begun_at - request.waiting_since)

    def prefilled(self, requests: Iterable[Request], now: float) -> None:
        """A step has computed a part of their prompts: some may have got the first token they waited for."""
        for request in requests:
            if request.num_awaited_tokens and request.num_output_tokens >= request.num_awaited_tokens:
                request.num_awaited_tokens = 0
                if request.begun_at is not None:
                    self._meter.prefill_times.record(now - request.begun_at)

    def _hand_over(self, known: Request, again: Request) -> None:
        """Give `again`'s client the rows that it does not have, and those that are still to come."""
        client, first = again.client, again.num_output_tokens
        if known.client is not client or known.request_id != again.request_id:
            old = known.client
            if old.requests.pop(known.request_id, None) is not None:
                self.refuse(old.peer, known.request_id, Unavailable("another connection has taken over"))
            if self.scheduler is not None and known.state is not State.ENDED:
                self.scheduler.move(known, client, again.request_id)
            else:
                known.client, known.request_id = client, again.request_id
        if known.state is not State.ENDED:
            client.requests[known.request_id] = known
            self.kept.hold(known)
        client.resend(known, first)

    # ── going ───────────────────────────────────────────────────────────────────────────────────

    def finished(self, request: Request) -> None:
        """Its last row is on its way."""
        if request.begun_at is not None:
            self._meter.inference_times.record(self._clock() - request.begun_at)
        request.client.requests.pop(request.request_id, None)
        self._end(request)
        self._keep(request)

    def abort(self, peer: bytes, abort: Abort) -> None:
        """The client does not want these any more."""
        client = self.clients.get(peer)
        for request_id in abort.request_ids:
            if client is not None and (request := client.requests.get(request_id)) is not None:
                self._drop(request)
                client.add_end(request, Finish.ABORT)

    def leave(self, peer: bytes, leave: Leave) -> None:
        """Nobody reads these for the moment."""
        client = self.clients.get(peer)
        for request_id in leave.request_ids:
            if client is not None and (request := client.requests.pop(request_id, None)) is not None:
                if leave.done:
                    request.finish = Finish.LENGTH  # its last token is none that ends an answer, but text
                    self._end(request)
                    self._keep(request)
                else:
                    self._client_gone(request)

    def forget_the_vanished(self, probe: EngineMessage) -> None:
        """ZeroMQ tells of a lost peer only who sends to it, and to one without requests nothing is sent. So
        all are sent this, each time that there are twice as many as were there the last time."""
        if len(self.clients) < self._most_untried:
            return
        for client in list(self.clients.values()):
            if not self._outbox.send(client.peer, probe):
                self.forget(client)
        self._most_untried = max(2 * len(self.clients), MOST_UNTRIED)

    def forget(self, client: Client) -> None:
        """The client is gone: so are its requests, but for those with a key."""
        if self.clients.pop(client.peer, None) is not None:
            for request in client.requests.values():
                self._client_gone(request)
            client.requests.clear()

    def fail(self, request: Request, error: TernError, *, trusted: bool = True) -> None:
        """End a request with an error. Not `trusted`: its KV must not be found again."""
        self._drop(request, trusted=trusted)
        self.refuse(request.client.peer, request.request_id, error)

    def refuse(self, peer: bytes, request_id: int, error: TernError) -> None:
        """The last message of a request that ends with an error."""
        refused = Refused(
            request_id,
            error.code,
            error.message,
            error.retryable,
            error.param or "",
            error.retry_after_s or 0.0,
        )
        if (client := self.clients.get(peer)) is not None:
            client.refuse(refused)
        elif peer:
            self._outbox.send(peer, refused)

    def expire(self, now: float) -> None:
        """End the requests whose deadline or grace time has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            if request.state is State.ENDED:
                continue
            if request.state is State.WAITING and not request.num_output_tokens:
                wait = self._meter.retry_after_s(len(self.scheduler.waiting) if self.scheduler else 0, now)
                message = "the request waited for its whole time without being started: try again later"
                self.fail(request, Unavailable(message, retry_after_s=wait))
            else:
                self.fail(request, DeadlineExceeded("the request's own deadline passed before it was done"))
        for request in self.kept.expired(now):
            self._end(request)

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        while self._deadlines and self._deadlines[0][2].state is State.ENDED:
            heapq.heappop(self._deadlines)
        expiry = self.kept.next_expiry
        if not self._deadlines:
            return expiry
        return self._deadlines[0][0] if expiry is None else min(expiry, self._deadlines[0][0])

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    def _client_gone(self, request: Request) -> None:
        """Already out of its client's requests."""
        if not request.key or self.scheduler is None:
            self._end(request)
            return
        self.scheduler.move(request, self.nobody, request.request_id)
        self._keep(request)

    def _keep(self, request: Request) -> None:
        if request.key:
            for crowded in self.kept.release(request, self._clock()):
                self._end(crowded)

    def _drop(self, request: Request, *, trusted: bool = True) -> None:
        """Without a word."""
        request.client.requests.pop(request.request_id, None)
        if request.key:
            self.kept.forget(request)
        self._end(request, trusted=trusted)

    def _end(self, request: Request, *, trusted: bool = True) -> None:
        if self.scheduler is not None:
            self.scheduler.end(request, trusted=trusted)


def _goes_on(known: Request, again: Request) -> bool:
    """Whether `again` asks for nothing but what `known` has or will have."""
    return (
        known.sampling == again.sampling
        and known.embed == again.embed
        and known.adapter == again.adapter
        and (known.grammar and known.grammar.text) == (again.grammar and again.grammar.text)
        and known.num_prompt_tokens == again.num_prompt_tokens
        and known.token_ids[: again.num_tokens] == again.token_ids
        and (known.transcript is None or known.transcript.first <= again.num_output_tokens)
    )
