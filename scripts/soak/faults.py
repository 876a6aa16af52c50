"""Faults: what is done to a running server from outside, one at a time, each followed to its end.

kill, stop      SIGKILL or SIGSTOP of worker, engine core or a frontend: another process takes its place
kill both       worker and engine core at once
roll            SIGHUP of the supervisor: every frontend is replaced
garbage         frames that are none, on the engine core's socket: nothing happens
disconnect      clients that hang up in the middle, many at once: nothing happens
"""

import asyncio
import math
import os
import random
import re
import signal
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import zmq

from scripts.bench.stack import Stack

from .http_answer import Broken, HttpAnswer
from .tally import Tally

RECOVERY_DEADLINE_S = 60.0
_LOOK_AGAIN_S = 0.01
_IMPATIENT = 16
"""Clients of one `disconnect`."""
_GARBAGE = 50
"""Frames of one `garbage`."""
_TOO_LONG = 17 << 20
"""Bytes of a frame that is over the limit: its sender is cut off."""
_RESTART = re.compile(r"tern: (engine core|worker|frontend)\b.* starting it again")


class Faults:
    """All that befalls one server."""

    def __init__(self, stack: Stack, tally: Tally, generator: random.Random) -> None:
        self._stack = stack
        self._tally = tally
        self._generator = generator
        self.done: Counter[str] = Counter()
        self.recovery_s: defaultdict[str, list[float]] = defaultdict(list)
        """By fault: until another process had taken the place and the server was ready again."""
        self.restarts: Counter[str] = Counter()
        """By kind of process, as they must be."""
        self._frontend_back_at = -math.inf
        number = signal.SIGKILL, signal.SIGSTOP
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            f"{verb} {kind.replace('_', ' ')}": self._hit(n, kind)
            for verb, n in zip(("kill", "stop"), number, strict=True)
            for kind in ("worker", "engine_core", "frontend")
        }
        self._kinds["kill both"] = self._hit(signal.SIGKILL, "worker", "engine_core")
        self._kinds["roll"] = self._roll
        self._kinds["garbage"] = self._send_garbage
        self._kinds["disconnect"] = self._disconnect
        self._bag: list[str] = []

    async def one(self) -> str:
        """Bring about the next one and wait until it is over; its name. Every kind comes before any again."""
        if not self._bag:
            self._bag = [*self._kinds]
            self._generator.shuffle(self._bag)
        name = self._bag.pop()
        began = time.monotonic()
        try:
            async with asyncio.timeout(RECOVERY_DEADLINE_S):
                await self._kinds[name]()
        except TimeoutError:
            self._tally.problem("no recovery", f"{name}: not within {RECOVERY_DEADLINE_S:g} s")
        self.done[name] += 1
        self.recovery_s[name].append(time.monotonic() - began)
        return name

    def frontend_died_since(self, when: float) -> bool:
        """Whether a frontend was made to die after `when`, or is dying now."""
        return self._frontend_back_at >= when

    def restarts_seen(self) -> Counter[str]:
        """By kind of process, as the server's log says."""
        found = _RESTART.findall(self._stack.log.read_text(errors="replace"))
        return Counter(name.replace(" ", "_") for name in found)

    # ── signals ─────────────────────────────────────────────────────────────────────────────────

    def _hit(self, number: signal.Signals, *kinds: str) -> Callable[[], Awaitable[None]]:
        async def hit() -> None:
            victims = [(kind, self._generator.choice(self._stack.pids[kind])) for kind in kinds]
            how_many = {kind: len(self._stack.pids[kind]) for kind in kinds}
            if "frontend" in kinds:
                self._frontend_back_at = math.inf
            for kind, pid in victims:
                os.kill(pid, number)
                self.restarts[kind] += 1
            for kind, pid in victims:
                await self._until(self._is_replaced, kind, pid, how_many[kind])
            await self._until_ready()
            if "frontend" in kinds:
                self._frontend_back_at = time.monotonic()

        return hit

    async def _roll(self) -> None:
        pids = self._stack.pids
        os.kill(pids["supervisor"][0], signal.SIGHUP)
        for pid in pids["frontend"]:
            await self._until(self._is_replaced, "frontend", pid, len(pids["frontend"]))
        await self._until_ready()

    def _is_replaced(self, kind: str, pid: int, how_many: int) -> bool:
        pids = self._stack.pids[kind]
        return pid not in pids and len(pids) == how_many

    async def _until(self, condition: Callable[..., bool], *arguments: object) -> None:
        while not condition(*arguments):  # noqa: ASYNC110 - another process's doing, of which no event tells
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _until_ready(self) -> None:
        while not await asyncio.to_thread(_is_ready, self._stack):  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_AGAIN_S)

    # ── strangers ───────────────────────────────────────────────────────────────────────────────

    async def _send_garbage(self) -> None:
        endpoint = _endpoint(self._stack)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        try:
            socket.connect(endpoint)
            for _ in range(_GARBAGE):
                socket.send(self._generator.randbytes(self._generator.randint(0, 2000)))
            socket.send(
                b"\x96\xa6submit\x01" + self._generator.randbytes(64)
            )  # looks like a message at first
            socket.send(bytes(_TOO_LONG))
            await asyncio.sleep(_LOOK_AGAIN_S)  # what has not left by then need not
        finally:
            socket.close(linger=0)
            context.term()

    async def _disconnect(self) -> None:
        body = {"prompt": [11, 12], "max_tokens": 400, "ignore_eos": True, "stream": True}

        async def one() -> None:
            with suppress(Broken):
                await HttpAnswer().ask(self._stack.host, self._stack.port, body, most_events=2)

        await asyncio.gather(*(one() for _ in range(_IMPATIENT)))


def _endpoint(stack: Stack) -> str:
    return Path(stack.run_dir, "endpoint").read_text().strip()


def _is_ready(stack: Stack) -> bool:
    try:
        with urllib.request.urlopen(f"http://{stack.host}:{stack.port}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
