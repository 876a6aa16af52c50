"""What must be true of every fault, whatever it was: the oracles O1 to O7, written once.

    O1  each answer is that of a server in which nothing happened          `Scene.load`
    O2  each request ends exactly once                                     load.py, while it reads
    O3  at rest nothing runs or waits, and every block is free             `Scene.at_rest`
    O4  after the stop: no process, run folder, shared memory or port      remains.py
    O5  all of that within DEADLINE_S                                       `Scene`, as a deadline
    O6  exactly the expected restarts, all other pids as they were; not    `Scene`
        ready in between, and ready again
    O7  no prompt, no key, no traceback in the logs, one line per death    `check_output`

Knows no fault: a scenario brings that.
"""

import asyncio
import re
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx2

from protocol.messages import EngineStats
from tests.conftest import DEADLINE_S
from tests.faults.at_rest import Core
from tests.faults.load import CANARY, KEY, Answer, Ask, Fault, Load, no_fault
from tests.faults.remains import Remains

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

BLIND_S = 0.02
"""No worker starts as fast."""
NAMES = {"engine_core": "engine core", "worker": "worker", "frontend": "frontend"}
"""As the log calls them, by kind."""


class Reference:
    """A server in which nothing ever happens, and what it has answered so far."""

    def __init__(self, stack: "Stack") -> None:
        self.stack = stack
        self._answers: dict[Ask, Answer] = {}

    async def answers(self, asks: Sequence[Ask]) -> list[Answer]:
        missing = [ask for ask in dict.fromkeys(asks) if ask not in self._answers]
        for ask, answer in zip(missing, await Load(self.stack.base_url).run(missing), strict=True):
            assert answer.complete, (ask, answer)
            self._answers[ask] = answer
        return [self._answers[ask] for ask in asks]


class Scene:
    """A server under fault, as `async with`: entering takes down how it was, leaving asks all oracles."""

    def __init__(
        self,
        stack: "Stack",
        reference: Reference,
        restarts: Mapping[str, int],
        *,
        tracebacks: Collection[int] = (0,),
        stopped: bool = False,
        rolled: bool = False,
        abandoned: bool = False,
    ) -> None:
        """`restarts`: deaths by kind that are to be expected. `tracebacks`: how many may be in the log.
        `stopped`: the scenario itself ends the server. `rolled`: it replaces the frontends.
        `abandoned`: nobody is left to remove its folder."""
        self.stack = stack
        self.restarts = restarts
        self._reference = reference
        self._tracebacks = tracebacks
        self._stopped = stopped
        self._rolled = rolled
        self._abandoned = abandoned
        self._over = threading.Event()
        self._health: list[int] = []
        """What /health/ready has said, without repetitions: the epoch, or 0."""
        self._longest_blind_s = 0.0
        """Between two of its answers."""

    async def __aenter__(self) -> Self:
        self._remains = Remains(self.stack)
        self._timeout = asyncio.timeout(DEADLINE_S)
        await self._timeout.__aenter__()
        self._before = self.stack.pids
        self._watcher = threading.Thread(target=self._watch_health)
        self._watcher.start()
        while not self._health:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._stopped:
                await self.at_rest()
                await self._check_restarts()
        finally:
            self._over.set()
            await asyncio.to_thread(self._watcher.join)
            await self._timeout.__aexit__(kind, error, trace)
        if kind is None:
            if not self._stopped:
                self.stack.program.signal(signal.SIGTERM)
                assert self.stack.program.wait() == 0, self.stack.program.output
            self._remains.check(run_dir=not self._abandoned)
            self._check_output()

    # ── while it lasts ──────────────────────────────────────────────────────────────────────────

    async def load(
        self,
        asks: Sequence[Ask],
        fault: Fault,
        failing: Mapping[int, str] | None = None,
        *,
        together: bool = True,
        limit: int | None = None,
    ) -> list[Answer]:
        """O1: ask, let the fault strike meanwhile, and compare. `failing`: error codes by place."""
        failing = failing or {}
        expected = await self._reference.answers([a for i, a in enumerate(asks) if i not in failing])
        answers = await self.unchecked(asks, fault, together=together, limit=limit)
        assert {i: answers[i].error for i in failing} == dict(failing)
        self.compare([a for i, a in enumerate(answers) if i not in failing], expected)
        return answers

    async def unchecked(
        self, asks: Sequence[Ask], fault: Fault, *, together: bool = True, limit: int | None = None
    ) -> list[Answer]:
        """Ask, and let the fault strike meanwhile. `together`: nothing is done for any of them before the
        engine core has all. `limit`: tokens that come at most before the fault has struck, unless it holds
        them itself; None: a quarter of all."""
        load, hold = Load(self.stack.base_url), self.stack.hold
        if limit is None:
            limit = sum(ask.num_tokens for ask in asks) // 4

        async def strike() -> None:
            if together:
                await self._has_all(sum(ask.num_answers for ask in asks))
            if fault is no_fault:
                hold.release()
            else:
                hold.after(limit)
            await fault(load)
            hold.release()

        hold.after(0, "steps")
        answers, _ = await asyncio.gather(load.run(asks), strike())
        return answers

    async def _has_all(self, count: int) -> None:
        """Until so many sequences are in the engine core, which a thread of its own asks: see strikes.py."""

        async def watch() -> None:
            async with Core.of(self.stack) as core:
                await core.until(lambda stats: stats.num_running + stats.num_waiting >= count)

        await asyncio.to_thread(asyncio.run, watch())

    async def references(self, asks: Sequence[Ask]) -> list[Answer]:
        return await self._reference.answers(asks)

    def compare(self, answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
        for answer, right in zip(answers, expected, strict=True):
            assert answer.complete, (answer, self.stack.program.output)
            assert answer.same(right), (answer, right)

    async def at_rest(self) -> EngineStats:
        """O3. The statistics then."""
        async with Core.of(self.stack) as core:
            return await core.at_rest()

    async def hears(self, pattern: str) -> None:
        """Until the log says so."""
        await asyncio.to_thread(self.stack.program.wait_for, pattern)

    def _has(self, pattern: str, count: int) -> bool:
        return self._count(pattern) >= count

    def _count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.stack.program.output))

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────

    async def _check_restarts(self) -> None:
        """O6."""
        program = self.stack.program
        for kind, count in self.restarts.items():
            again = rf"{NAMES[kind]}( \d+)? is ready again"
            condition = partial(self._has, again, count)
            await asyncio.to_thread(program.wait_until, condition, again)
        await asyncio.to_thread(self.stack.wait_ready)
        after = self.stack.pids
        for kind, name in NAMES.items():
            deaths = self._count(rf"{name}( \d+)? \(pid \d+\) .*; starting it again")
            assert deaths == self.restarts.get(kind, 0), program.output
            assert len(after[kind]) == len(self._before[kind])
            changed = set(after[kind]) - set(self._before[kind])
            if kind == "frontend" and self._rolled:
                assert changed == set(after[kind])
            elif kind not in self.restarts:
                assert not changed, f"{kind} was restarted for nothing:\n{program.output}"
            elif kind != "frontend":  # of those, only the dead one is replaced
                assert changed == set(after[kind]), f"{kind} was not restarted as one unit"
        await self._check_health()

    async def _check_health(self) -> None:
        """Ready, not ready where nobody could have answered, and ready again in another epoch. A stub is back
        within milliseconds, which on a busy machine nobody may have seen."""
        first = self._health[0]
        interrupted = bool(self.restarts.keys() & {"worker", "engine_core"})
        while not self._health[-1] or (interrupted and self._health[-1] == first):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        epochs = [epoch for epoch in self._health if epoch]
        assert epochs == sorted(epochs), self._health
        if "worker" in self.restarts:
            assert 0 in self._health or self._longest_blind_s > BLIND_S, "ready without a worker"

    def _check_output(self) -> None:
        """O7."""
        output = self.stack.program.output
        assert CANARY not in output
        assert KEY not in output
        assert output.count("Traceback") in self._tracebacks, output
        assert output.count("starting it again") == sum(self.restarts.values()), output

    def _watch_health(self) -> None:
        """In a thread of its own, so that it looks often however busy the event loop is. While the frontend
        that is asked is gone, nothing is noted."""
        with httpx2.Client(base_url=self.stack.base_url, timeout=60) as client:
            looked = time.monotonic()
            while not self._over.wait(0.005):
                with suppress(httpx2.TransportError):
                    response = client.get("/health/ready")
                    before, looked = looked, time.monotonic()
                    self._longest_blind_s = max(self._longest_blind_s, looked - before)
                    epoch = response.json()["epoch"] if response.status_code == 200 else 0
                    if not self._health or self._health[-1] != epoch:
                        self._health.append(epoch)


async def untouched(stack: "Stack", pids: Mapping[str, Sequence[int]], remains: Remains) -> None:
    """O3, O4, O6 and O7 of a server whose processes, as they were, had nothing to notice. Ends it."""
    async with asyncio.timeout(DEADLINE_S):
        async with Core.of(stack) as core:
            await core.at_rest()
        await asyncio.to_thread(stack.wait_ready)
        assert stack.pids == pids, stack.program.output
        stack.program.signal(signal.SIGTERM)
        assert await asyncio.to_thread(stack.program.wait) == 0, stack.program.output
    remains.check()
    for word in ("Traceback", "starting it again", CANARY, KEY):
        assert word not in stack.program.output, stack.program.output
