"""Faults from outside: signals to a process of the server, at a moment of its work."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.messages import EngineStats
from tests.faults.at_rest import Core

if TYPE_CHECKING:
    from tests.faults.load import Fault, Load
    from tests.faults.oracles import Scene
    from tests.stack.conftest import Stack

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


def at(tokens: int, scene: "Scene", number: signal.Signals, kind: str, index: int = 0) -> "Fault":
    """A signal to a process of a kind as soon as the engine core has so many tokens. Not twice as many can
    come before."""

    def strike() -> None:
        os.kill(scene.stack.pids[kind][index], number)

    async def fault(_: "Load") -> None:
        scene.stack.hold.after(2 * tokens)
        await strike_when(lambda stats: stats.generation_tokens >= tokens, strike, scene.stack)

    return fault


async def strike_when(
    condition: Callable[[EngineStats], bool], strike: Callable[[], object], stack: "Stack"
) -> None:
    """Something to be done as soon as the engine core's statistics are so, while it has work: the caller
    keeps it from ending. It is ahead of what clients have read, and they of this test: so it is asked itself,
    from a thread of its own."""

    async def watch() -> None:
        async with Core.of(stack) as core:
            stats = await core.until(condition)
            assert stats.num_running, "all has ended before the fault"
            strike()

    await asyncio.to_thread(asyncio.run, watch())
