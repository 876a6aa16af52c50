"""What an engine core shows of itself to people: a picture of the moment when asked, and what befalls it.

It holds numbers only: no prompt, no answer, no name of a tenant, no key. A Snapshot is made when somebody
asks, and at most so often that making them takes a hundredth of the engine core's time; who asks sooner gets
the last one again. An Event is sent to every client when it happens, and the recent ones to each client that
attaches.
"""

from enum import IntEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .bounds import Column, Count, Epoch, Label, Seconds

MOST_CELLS = 4096
"""Of the picture of the KV blocks: of a larger pool every n-th block is shown."""
MOST_VIEWS = 256
"""Requests in a Snapshot: those that run, then those that are next."""
MOST_TIMINGS = 256
"""Steps in a Snapshot."""


class Inspect(Struct, frozen=True, array_like=True, tag="inspect"):
    """Answered by `Snapshot` with the same nonce, at once or after a worker is ready."""

    nonce: Count


class Stage(IntEnum):
    """How far a request is."""

    WAITING = 0
    PREFILLING = 1
    """Tokens that it knows are being computed."""
    DECODING = 2


class RequestView(Struct, frozen=True, array_like=True, gc=False):
    """One request, in numbers."""

    number: Count
    """In order of arrival; of this engine core."""
    stage: Stage
    num_prompt_tokens: Count
    num_output_tokens: Count
    max_total_tokens: Count
    """Where it ends at the latest."""
    num_computed_tokens: Count
    num_cached_tokens: Count
    """Of its prompt, found in the prefix cache when it first ran."""
    num_blocks: Count
    constrained: bool = False
    """Its answer follows a grammar."""


FREE, CACHED, SHARED, UNLISTED = -1, -2, -3, -4
"""Cells of blocks that are free; free, and findable by the prefix cache; held by several requests; held by
a request that is not in the Snapshot. Others are held by the request with that index."""


class Snapshot(Struct, frozen=True, array_like=True, tag="snapshot"):
    """Answer to Inspect."""

    nonce: Count
    epoch: Epoch
    requests: Annotated[tuple[RequestView, ...], Meta(max_length=MOST_VIEWS)] = ()
    cell_stride: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] = 1
    """Cell i shows block i * cell_stride."""
    cells: Column = b""
    """int32[ceil(num_blocks / cell_stride)]"""
    num_steps: Count = 0
    """Since this engine core started; the last of them has the last timing."""
    step_seconds: Column = b""
    """float32[n]: from being sent, or the result before if that was later, to its result."""
    step_decodes: Column = b""
    """int32[n]: running answers that it continued."""
    step_prompt_tokens: Column = b""
    """int32[n]"""


EventKind = Literal[
    "engine_core_started",
    "workers_ready",
    "workers_lost",
    "workers_restarted",
    "step_failed",
    "request_crashed",
    "client_lost",
]


class Event(Struct, frozen=True, array_like=True, tag="event"):
    """Something that an operator wants to know has happened to this engine core."""

    incarnation: Count
    """Of the engine core."""
    number: Count
    """0, 1, 2, …: with `incarnation` it says whether a client has it already. 0 is `engine_core_started`."""
    kind: EventKind
    age_s: Seconds = 0.0
    """How long ago, when it was sent."""
    num_requests: Count = 0
    """That it concerns: they wait (workers_lost, step_failed), go on (workers_restarted), or end."""
    duration_s: Seconds = 0.0
    """workers_restarted: since workers_lost."""
    subject: Label = ""
    """client_lost: its name."""
    cause: Label = ""
    """As the supervisor puts it ("was killed by SIGKILL"), or the code of a step's failure."""
