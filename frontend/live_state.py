"""LiveState and LiveEvent: what /live answers, and how it is made of the engine core's messages.

Numbers only: no prompt, no answer, nobody's name or key. The shapes are for the page in static/, and carry a
version.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from protocol import columns
from protocol.messages import EngineFacts, EngineStats
from protocol.observation import RequestView, Snapshot

Status = Literal["ready", "no_worker", "no_engine_core"]


class Counters(Struct, frozen=True):
    """Of EngineStats, those that a page shows."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    steps: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    preemptions: int


class LiveRequest(Struct, frozen=True):
    """See RequestView."""

    number: int
    stage: Literal["waiting", "prefilling", "decoding"]
    num_prompt_tokens: int
    num_output_tokens: int
    max_total_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    num_blocks: int
    constrained: bool


class Blocks(Struct, frozen=True):
    stride: int
    """Cell i shows block i * stride."""
    cells: list[int]
    """-1 free, -2 free and cached, -3 shared, -4 held by one that is not listed, i held by requests[i]"""


class Steps(Struct, frozen=True):
    """The newest ones, oldest first; the last is number `count` - 1."""

    count: int
    ms: list[float]
    decodes: list[int]
    prompt_tokens: list[int]


class Model(Struct, frozen=True):
    model: str
    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    block_size: int


class LiveState(Struct, frozen=True, kw_only=True):
    """Null is what could not be had: there is no engine core, or it has not answered."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    time: float
    """Seconds since 1970"""
    status: Status
    epoch: int
    model: Model | None = None
    counters: Counters | None = None
    requests: list[LiveRequest] = []
    blocks: Blocks | None = None
    steps: Steps | None = None


class LiveEvent(Struct, frozen=True):
    """See protocol.observation.Event; engine_core_restarted is what a frontend makes of a new engine core."""

    id: str
    at: float
    """Seconds since 1970"""
    kind: str
    num_requests: int
    duration_s: float
    subject: str
    cause: str
    age_s: float = 0.0
    """When it is told; who reads it may have another idea of what time it is."""


def describe(
    now: float,
    status: Status,
    epoch: int,
    facts: EngineFacts | None,
    stats: EngineStats | None,
    snapshot: Snapshot | None,
) -> LiveState:
    """`facts`, `stats` and `snapshot`: what is known; the latter two come together."""
    model = None if facts is None else Model(**{n: getattr(facts, n) for n in Model.__struct_fields__})
    state = LiveState(time=now, status=status, epoch=epoch, model=model)
    if stats is None or snapshot is None:
        return state
    return structs.replace(
        state,
        counters=Counters(**{n: getattr(stats, n) for n in Counters.__struct_fields__}),
        requests=[_request(view) for view in snapshot.requests],
        blocks=Blocks(snapshot.cell_stride, columns.unpack_ids(snapshot.cells).tolist()),
        steps=Steps(
            count=snapshot.num_steps,
            ms=[round(1000 * seconds, 3) for seconds in columns.unpack_floats(snapshot.step_seconds)],
            decodes=columns.unpack_ids(snapshot.step_decodes).tolist(),
            prompt_tokens=columns.unpack_ids(snapshot.step_prompt_tokens).tolist(),
        ),
    )


_STAGES: tuple[Literal["waiting", "prefilling", "decoding"], ...] = ("waiting", "prefilling", "decoding")


def _request(view: RequestView) -> LiveRequest:
    return LiveRequest(
        number=view.number,
        stage=_STAGES[view.stage],
        num_prompt_tokens=view.num_prompt_tokens,
        num_output_tokens=view.num_output_tokens,
        max_total_tokens=view.max_total_tokens,
        num_computed_tokens=view.num_computed_tokens,
        num_cached_tokens=view.num_cached_tokens,
        num_blocks=view.num_blocks,
        constrained=view.constrained,
    )
