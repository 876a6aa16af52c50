"""Asker: many questions to one server, answered in the order in which they were asked.

    questions ──▶ window ──▶ threads, each with a connection ──▶ replies in order

What a full queue or a restarted process refuses is asked again: nobody has seen an answer yet, so nothing
is lost or doubled. Knows nothing of files and of what a reply means.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from protocol.errors import StartupError

from .api_client import TROUBLE, ApiClient, Reply

RETRIED = {429, 502, 503}
"""Statuses that say nothing of the question."""
WINDOW = 16
"""Questions that may be under way or answered beyond the oldest open one, per connection."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
LOOK_EVERY_S = 0.2


class Question(Struct, frozen=True):
    """One request."""

    path: str
    body: dict[str, Any]


class Stopped(Exception):
    """The asker was closed meanwhile."""


class Asker:
    """Threads that ask. Leave `with`, or `close`, to abort what is under way."""

    def __init__(
        self, connect: Callable[[], ApiClient], concurrency: int, check: Callable[[float], None]
    ) -> None:
        """`check` is given the seconds since the server last answered this question's thread, and raises
        when there is no point in going on."""
        self.concurrency = concurrency
        self._connect, self._check = connect, check
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ask")
        self._mine = threading.local()
        self._clients: list[ApiClient] = []
        self._stopping = threading.Event()

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, questions: Iterable[Question], on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Reply]:
        """`on_wait` is called every now and then while nothing comes. Raises what `check` raises."""
        waiting: deque[Future[Reply]] = deque()
        more = iter(questions)
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < WINDOW * self.concurrency:
                question = next(more, None)
                exhausted = question is None
                if question is not None:
                    waiting.append(self._pool.submit(self._answer, question))
            while waiting:
                try:
                    reply = waiting[0].result(LOOK_EVERY_S)
                except TimeoutError:
                    on_wait()
                    continue
                waiting.popleft()
                yield reply
                break

    def close(self) -> None:
        """Nothing more is asked; what is under way is aborted."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()
        self._pool.shutdown()

    def _answer(self, question: Question) -> Reply:
        """In a thread of the pool."""
        client = getattr(self._mine, "client", None)
        if client is None:
            client = self._mine.client = self._connect()
            self._clients.append(client)
        pause_s, since = FIRST_PAUSE_S, time.monotonic()
        while not self._stopping.is_set():
            reply = None
            try:
                reply = client.post(question.path, question.body)
            except TROUBLE:
                self._check(time.monotonic() - since)
            if reply is not None and reply.status not in RETRIED:
                return reply
            if reply is not None:
                since = time.monotonic()  # it is there, and has its reasons
            self._stopping.wait(max(pause_s, reply.retry_after_s if reply else 0.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise Stopped


def patience(url: str, seconds: float) -> Callable[[float], None]:
    """A `check` for a server that is somebody else's."""

    def check(silent_s: float) -> None:
        if silent_s > seconds:
            raise StartupError(
                f"no server has answered at {url} for {silent_s:.0f} s",
                hint="what is answered so far is kept: run the same command to go on",
            )

    return check
