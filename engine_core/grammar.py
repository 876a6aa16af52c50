"""Grammars: which tokens may follow, found out beside the loop. Knows nothing of steps or clients.

    begin    ──▶ text is read, ids known so far are taken ─┐            ┌─▶ forced ids and a mask
    advance  ──▶ ids that are new since ───────────────────┴─▶ a job ───┴─▶ or what is wrong    (`take`)

A request has at most one job at a time, and is not looked at by anyone else meanwhile. Jobs that were quick
the last time are done at once, while the step computes whose masks they find; those that read a text, or were
slow, are done by other threads. What goes wrong in a job ends its request alone.
"""

import os
import resource
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from protocol.errors import GrammarFailed, InternalError, InvalidRequest, TernError
from protocol.messages import EngineFacts

if TYPE_CHECKING:
    from protocol.grammar import Follower, GrammarReader

    from .request import Request

SLOW_S = 0.002
"""Of CPU time, after which a job's request runs apart: no step begins before its mask is there. Most take 10
to 30 µs."""
SLOW_TOKENS = 64
"""For so many tokens, as everyone's step waits when a quick job turns slow: 20 ms at most, see LIMITS."""
NUM_THREADS = 2
MOST_TEXTS = 64
"""Read texts that are kept for the next request with the same one."""
STACK_BYTES = 64 << 20
"""Of each thread, as the parsers recurse. More than the door's, so that what it lets in is safe here."""
CLOSE_S = 1.0


class Grammar:
    """What a request's state of mind is about its grammar."""

    __slots__ = ("busy", "follower", "mask", "mask_at", "num_taken", "slow_tokens", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.follower: Follower | None = None
        """None: the text has not been read yet."""
        self.num_taken = 0
        """Output tokens that the follower knows."""
        self.mask = b""
        self.mask_at = -1
        """Number of the request's tokens after which `mask` holds."""
        self.busy = False
        self.slow_tokens = 0
        """For how many more of them it runs apart."""

    @property
    def slow(self) -> bool:
        return self.slow_tokens > 0


class Job:
    """Of one request; whoever has it may write to it."""

    __slots__ = ("error", "forced", "grammar", "mask", "request", "room", "seconds", "token_ids")

    def __init__(self, request: "Request", grammar: Grammar, token_ids: list[int], room: int) -> None:
        self.request = request
        self.grammar = grammar
        self.token_ids = token_ids
        """Outputs that are new to the follower."""
        self.room = room
        """Tokens that may be forced."""
        self.forced: list[int] = []
        self.mask = b""
        self.error: TernError | None = None
        self.seconds = 0.0
        """Of CPU time, if there were many."""


class Hands(Protocol):
    """Who does the jobs that may take long."""

    def now(self) -> float:
        """In seconds, and quick to ask."""

    def worked_s(self) -> float:
        """CPU time of the calling thread, so far: 1 to 2 µs."""

    def do(self, work: Callable[[], None]) -> None:
        """Now or later, here or elsewhere."""


class Grammars:
    """Of all requests of one engine core."""

    def __init__(self, folder: str, hands: Hands) -> None:
        """`folder` holds tokenizer.json; empty: there are no grammars."""
        self.available = bool(folder)
        self._folder = folder
        self._hands = hands
        self._lock = threading.Lock()
        self._reader: GrammarReader | None = None
        self._vocabulary: tuple[int, tuple[int, ...]] | None = None
        self._texts: OrderedDict[str, Follower] = OrderedDict()
        self._done: deque[Job] = deque()

    def begin(self, request: "Request", facts: EngineFacts) -> None:
        """Read its grammar."""
        assert request.grammar is not None
        job = self._job(request, request.grammar)
        self._hands.do(partial(self._run, [job], facts))

    def advance(self, requests: Iterable["Request"]) -> None:
        """These have outputs that their grammars do not know yet."""
        quick: list[Job] = []
        for request in requests:
            grammar = request.grammar
            assert grammar is not None
            job = self._job(request, grammar)
            if grammar.slow:
                self._hands.do(partial(self._run, [job]))
            else:
                quick.append(job)
        if quick:
            self._run(quick)

    def take(self) -> list[Job]:
        """What has been found out, for requests that may have ended meanwhile."""
        jobs: list[Job] = []
        while self._done:
            job = self._done.popleft()
            grammar = job.grammar
            grammar.busy = False
            if job.seconds > SLOW_S and grammar.num_taken:
                grammar.slow_tokens = SLOW_TOKENS
            elif grammar.slow_tokens:
                grammar.slow_tokens -= 1
            grammar.num_taken += len(job.token_ids) + len(job.forced)
            jobs.append(job)
        return jobs

    def _job(self, request: "Request", grammar: Grammar) -> Job:
        assert not grammar.busy
        grammar.busy = True
        token_ids = request.token_ids
        new = token_ids[request.num_prompt_tokens + grammar.num_taken :].tolist()
        free = request.sampling.logprobs is None and request.sampling.prompt_logprobs is None
        return Job(request, grammar, new, request.max_total_tokens - len(token_ids) if free else 0)

    # ── also in other threads ───────────────────────────────────────────────────────────────────

    def _run(self, jobs: list[Job], facts: EngineFacts | None = None) -> None:
        hands = self._hands
        worked, before = hands.worked_s(), hands.now()
        for job in jobs:
            try:
                if job.grammar.follower is None:
                    assert facts is not None
                    job.grammar.follower = self._read(job.grammar.text, facts)
                _follow(job, job.grammar.follower)
            except BaseException as error:  # the library's panics are no Exceptions
                job.error = _explain(error, first=facts is not None)
            now = hands.now()
            if now - before > SLOW_S:  # or others had the processor
                job.seconds = min(now - before, hands.worked_s() - worked)
            before = now
            self._done.append(job)

    def _read(self, text: str, facts: EngineFacts) -> "Follower":
        vocabulary = facts.vocab_size, facts.eos_token_ids
        with self._lock:
            if self._reader is None or self._vocabulary != vocabulary:
                from protocol.grammar import GrammarReader  # loads the library: few servers need it at once

                self._reader, self._vocabulary = GrammarReader(self._folder, *vocabulary), vocabulary
                self._texts.clear()
            if (known := self._texts.get(text)) is not None:
                self._texts.move_to_end(text)
                return known.copy()
            reader = self._reader
        follower = reader.read(text)
        with self._lock:
            self._texts[text] = follower.copy()
            if len(self._texts) > MOST_TEXTS:
                self._texts.popitem(last=False)
        return follower


def _follow(job: Job, follower: "Follower") -> None:
    follower.take(job.token_ids)
    while len(job.forced) < job.room and not follower.ended and (forced := follower.take_forced()):
        job.forced += forced[: job.room - len(job.forced)]
    if not follower.ended and (len(job.forced) < job.room or not job.room):
        job.mask = follower.mask()


def _explain(error: BaseException, *, first: bool) -> TernError:
    """What the request ends with. `first`: its text has never been followed before."""
    if not isinstance(error, ValueError):
        return InternalError("the grammar of this request could not be followed")
    if first:
        return InvalidRequest(f"grammar: {error}", param="grammar")
    return GrammarFailed(f"the answer cannot follow its grammar any further: {error}")


def deepen_stack() -> None:
    """Let this process's main thread recurse as deeply as the others: Linux asks the limit as it grows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft < STACK_BYTES:
        wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


class Threads:
    """Hands of a process. `fileno` becomes readable when something has been done."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def fileno(self) -> int:
        return self._wake

    def now(self) -> float:
        return time.perf_counter()

    def worked_s(self) -> float:
        return time.thread_time()

    def clear(self) -> None:
        """It has been seen that something was done."""
        os.eventfd_read(self._wake)

    def do(self, work: Callable[[], None]) -> None:
        if not self._threads:
            self._start()
        self._queue.put(work)

    def close(self) -> None:
        """What has not been begun is not done any more."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _start(self) -> None:
        before = threading.stack_size(STACK_BYTES)
        for _ in range(NUM_THREADS):
            thread = threading.Thread(target=self._work, name="grammar", daemon=True)
            thread.start()
            self._threads.append(thread)
        threading.stack_size(before)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            os.eventfd_write(self._wake, 1)
