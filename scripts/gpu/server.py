"""Tern as it is served, one server at a time: the real stack, driven through its own client and through HTTP.

Models are published shapes with random weights. A server is kept while the same is asked for, as loading
takes longer than most measurements; one that did not start is not tried again.
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from protocol.client import EngineClient, endpoint_file
from scripts.bench.stack import Stack, serving

from .shapes import Shape, write

T = TypeVar("T")
LOG_TAIL = 6000
"""Characters"""
READY_S = 150.0
"""Longest that a server may take until it is ready: the first compiles every kernel."""


class Model(NamedTuple):
    """What is served, and how."""

    shape: Shape
    weights: str = "bf16"
    graphs: bool = True
    invariant: bool = False
    overlapping: bool = False

    def __str__(self) -> str:
        name = f"{self.shape.name} {self.weights}{'' if self.graphs else ', no graphs'}"
        name += ", batch-invariant" * self.invariant
        return name + ", overlapping launches" * self.overlapping

    def arguments(self) -> list[str]:
        """Of `tern serve`, besides model and device."""
        rounded = [] if self.weights == "bf16" else ["--quantization", self.weights]
        if self.weights == "int4":
            rounded += ["--quantization-group", "128"]  # as floors.py counts
        invariant = ["--batch-invariant", "on"] if self.invariant else []
        overlapping = ["--programmatic-launch", "on"] if self.overlapping else []
        return [*rounded, *invariant, *overlapping, *([] if self.graphs else ["--enforce-eager"])]


class Server:
    """A running server that has been attached to."""

    def __init__(self, model: Model, stack: Stack, client: EngineClient, loop: asyncio.Runner) -> None:
        self.model, self.stack, self.client = model, stack, client
        self.end = 0.0
        """time.monotonic() at which whoever measures must have finished."""
        self._loop = loop
        self._draw = random.Random(0)

    def ask(self, measure: Coroutine[Any, Any, T]) -> T:
        """Run it to its end. Raises TimeoutError when the time of the one who measures is up."""

        async def bounded() -> T:
            return await asyncio.wait_for(measure, max(self.end - time.monotonic(), 0.001))

        return self._loop.run(bounded())

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Random ones, different each time."""
        size = self.model.shape.vocab_size
        return [[self._draw.randrange(size) for _ in range(length)] for _ in range(count)]


class Servers:
    """At most one runs at any time."""

    def __init__(self, folder: Path, arguments: list[str], ready_s: float = READY_S) -> None:
        """`folder`: for checkpoints; `arguments`: of every server, such as its device."""
        self._folder, self._arguments, self._ready_s = folder, arguments, ready_s
        self._loop = asyncio.Runner()
        self._running: Server | None = None
        self._life = ExitStack()
        self._failed: dict[Model, str] = {}

    def runs(self, model: Model) -> bool:
        """Whether it is there already."""
        return self._running is not None and self._running.model == model

    def get(self, model: Model, limit_s: float) -> Server:
        """The server of this model, which takes the place of any other; to be used within `limit_s` from now,
        its start included. Raises RuntimeError, TernError or OSError."""
        end = time.monotonic() + limit_s
        if self._running is None or self._running.model != model:
            if model in self._failed:
                raise RuntimeError(f"as before: {self._failed[model]}")
            self.stop()
            try:
                self._running = self._start(model, min(limit_s, self._ready_s))
            except Exception as error:
                self._failed[model] = str(error)
                self.stop()
                raise
        self._running.end = end
        return self._running

    def said(self) -> str:
        """The end of what the running server has written, if one runs."""
        if self._running is None:
            return ""
        return self._running.stack.log.read_text(errors="replace")[-LOG_TAIL:]

    def stop(self) -> None:
        """End the server, if any, and give its memory back."""
        self._running = None
        self._life.close()

    def close(self) -> None:
        self.stop()
        self._loop.close()

    def _start(self, model: Model, limit_s: float) -> Server:
        began = time.monotonic()
        arguments = ["--model", str(write(model.shape, self._folder)), "--load-format", "dummy"]
        arguments += [*self._arguments, *model.arguments()]
        stack = self._life.enter_context(serving(arguments, ready_timeout_s=limit_s))
        client = self._life.enter_context(self._attached(stack, limit_s - (time.monotonic() - began)))
        return Server(model, stack, client, self._loop)

    @contextmanager
    def _attached(self, stack: Stack, limit_s: float) -> Iterator[EngineClient]:
        address = endpoint_file(stack.run_dir)
        attach = EngineClient.attach(address, name="gpu-check", timeout_s=max(limit_s, 1.0))
        client = self._loop.run(attach)
        try:
            yield client
        finally:
            self._loop.run(client.close())
