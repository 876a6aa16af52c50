"""What must be true of a server whose clients are gone: see `at_rest`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from protocol.client import EngineClient
from protocol.messages import EngineStats
from tests.conftest import DEADLINE_S

if TYPE_CHECKING:
    from tests.stack.conftest import Stack


class Core:
    """The engine core of a server, asked for its statistics."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def of(cls, stack: "Stack") -> "AsyncIterator[Core]":
        client = await EngineClient.attach(stack.endpoint_file)
        try:
            yield cls(client)
        finally:
            await client.close()

    async def stats(self) -> EngineStats:
        return (await self._client.ping(DEADLINE_S)).stats

    async def until(self, condition: Callable[[EngineStats], bool]) -> EngineStats:
        """Ask until the answer is the one."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(found := await self.stats()):
                pass
        return found

    async def at_rest(self) -> EngineStats:
        """Nothing runs, nothing waits, and all blocks are back."""
        return await self.until(
            lambda stats: (
                stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks
            )
        )
