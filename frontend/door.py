"""Door: who is let in, and how long they may stay. Knows nothing of what they do inside.

New work needs an engine core and a server that is not stopping. Work ends early when its client goes
away (which aborts it within milliseconds, streaming or not) or when the time to drain is over.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

from protocol.client import EngineClient
from protocol.errors import Unavailable
from protocol.messages import EngineFacts

PATIENCE_S = 2.0
"""How long new work waits while an engine core is being replaced, which takes about half a second, or
until a frontend that has just taken another's place is attached, which takes milliseconds."""


class Door:
    """One per frontend. `client` is asked whether there is an engine core behind it."""

    def __init__(self, client: EngineClient) -> None:
        self.draining = False
        self._client = client
        self._inside: set[asyncio.Task[None]] = set()

    async def admit(self) -> EngineFacts:
        """What the engine core behind us can do. Raises Unavailable: try again later."""
        self._check_open()
        if not self._client.attached.is_set():
            try:
                await asyncio.wait_for(self._client.attached.wait(), PATIENCE_S)
            except TimeoutError:
                loading = self._client.facts is None
                what = "the model is still being loaded" if loading else "the engine core is being replaced"
                raise Unavailable(what) from None
            self._check_open()
        if self._client.facts is None:
            raise Unavailable("the engine core refused this frontend: it speaks another protocol version")
        return self._client.facts

    async def attend(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do the work as long as its client is there. The request's body must have been received.

        Raises what the work raises, and Unavailable when it did not end in time before a stop, or when the
        stop began while its body was still being received.
        """
        if self.draining:
            work.close()
        self._check_open()
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(_gone(receive))
        self._inside.add(task)
        try:
            await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled():
                raise Unavailable("the server is stopping and this answer was not complete in time")
            if task.done():
                task.result()
        finally:
            watcher.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            self._inside.discard(task)

    async def drain(self, timeout_s: float) -> None:
        """Let nobody in any more, wait until all have left, and send away who is still here after that."""
        self.draining = True
        if self._inside:
            await asyncio.wait(set(self._inside), timeout=timeout_s)
        for task in self._inside:
            task.cancel()

    def _check_open(self) -> None:
        if self.draining:
            raise Unavailable("the server is stopping")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
