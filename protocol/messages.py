"""Client ↔ engine core. README.md draws the life of a request; this file is its alphabet.

A client connects a DEALER to the engine core's ROUTER. Columns (see columns.py) are packed
little-endian arrays. Fields are only ever appended, with defaults, and each is bounded by its type: a frame
can make a decoder allocate no more than a small multiple of its own length.
"""

from enum import IntEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .adapters import MOST_ADAPTERS
from .bounds import (
    MAX_ENTRIES,
    Column,
    Count,
    Epoch,
    FlagColumn,
    Label,
    Prose,
    RequestId,
    TableColumn,
    Vector,
    WideColumn,
)
from .kv_groups import MOST_GROUPS, KVGroup, blocks_of
from .observation import Event, Inspect, Snapshot
from .sampling import SamplingParams, TokenId

PROTOCOL_VERSION = 3

MOST_TIMEOUT_S = 1e6
"""Eleven days: in milliseconds it is still an int32, which is what poll takes."""
MAX_GRAMMAR_CHARS = 1 << 20


class Finish(IntEnum):
    """Why a request ended; NONE while it goes on."""

    NONE = 0
    STOP = 1
    """A stop or end-of-sequence token; it is the row's token, and the last."""
    LENGTH = 2
    """max_tokens or the context is full, or its client has had enough (Leave)."""
    ABORT = 3
    """The client asked for it. The row has no token."""


NO_TOKEN = -1


# ── client → engine core ────────────────────────────────────────────────────────────────────────


class Attach(Struct, frozen=True, array_like=True, tag="attach"):
    """First message of a client. Answered by `Attached` once a model is loaded, or by `AttachRefused`."""

    protocol_version: Count
    fingerprint: Label
    """Hash of this protocol's schema: both sides must be built from the same messages."""
    name: Label
    incarnation: Count = 0
    """Of a supervised client, so that the supervisor can report its death; 0 for strangers."""


class Submit(Struct, frozen=True, array_like=True, tag="submit"):
    """Start a request, or go on with one from the ids that its client already has.

    Idempotent: a second Submit of a live request_id does not restart it; the client gets (again) the rows
    from index len(resumed) on, with their log-probabilities.
    """

    request_id: RequestId
    prompt_token_ids: Column
    sampling: SamplingParams
    resumed_token_ids: Column = b""
    """Output ids already delivered; the next row has index len(resumed)."""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] = 0
    """Lower runs first."""
    timeout_s: Annotated[float, Meta(gt=0, le=MOST_TIMEOUT_S)] | None = None
    """From receipt; afterwards the request ends as `deadline_exceeded`."""
    tenant: Label = ""
    cache_salt: Label = ""
    """Requests share cached prefixes only within the same (tenant, salt, adapter)."""
    adapter: Label = ""
    """Not empty: one of EngineFacts.adapters, with which the model computes this request."""
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] = ""
    """Not empty: the answer follows it. As llguidance reads it: Lark, or {"grammars": [{"json_schema": …}]}.
    Outputs that it forces are not sampled: they come by themselves, several rows in one message."""
    key: Label = ""
    """Not empty: the request outlives its client. Whoever submits the same key (in the same tenant) takes
    it over, with all its rows from index len(resumed) on, while it runs and for a grace time after."""
    digest: Label = ""
    """Of what was asked. The same key with another digest is refused as `idempotency_key_reused`."""
    again: bool = False
    """It was accepted before, by this engine core or another: a full queue does not refuse it now."""
    embed: bool = False
    """Not an answer is wanted, but the prompt as a vector: it ends with one row, which has no token, and
    Outputs has the vector beside it. To be submitted without ids, grammar or key: it is computed again."""


class Abort(Struct, frozen=True, array_like=True, tag="abort"):
    """End these requests. Unknown ids are ignored: they may have just finished."""

    request_ids: Annotated[tuple[RequestId, ...], Meta(max_length=MAX_ENTRIES)]


class Leave(Struct, frozen=True, array_like=True, tag="leave"):
    """The client of these requests is gone: keep those with a key for the grace time, abort the others.

    Nothing is answered. Unknown ids are ignored.
    """

    request_ids: Annotated[tuple[RequestId, ...], Meta(max_length=MAX_ENTRIES)]
    done: bool = False
    """Their answers are complete (a stop string has come): they end here, and what they have is kept."""


class Ping(Struct, frozen=True, array_like=True, tag="ping"):
    """Answered by `Pong` with the same nonce, from the main loop."""

    nonce: Count


class Control(Struct, frozen=True, array_like=True, tag="control"):
    """An operator's wish. Answered by `ControlResult` with the same nonce."""

    nonce: Count
    action: Literal["reset_prefix_cache", "start_profile", "stop_profile"]


ClientMessage = Attach | Submit | Abort | Leave | Ping | Control | Inspect


# ── engine core → client ────────────────────────────────────────────────────────────────────────


class EngineFacts(Struct, frozen=True, array_like=True):
    """What an engine core learned from its workers. A new epoch may bring new facts."""

    model: Label
    vocab_size: Count
    max_model_len: Count
    """Prompt plus output tokens of one request."""
    block_size: Count
    """Tokens per KV block."""
    num_blocks: Count
    """In one pool for all KV groups. They are of equal size."""
    eos_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_ENTRIES)]
    max_num_seqs: Count
    device: Label = "cpu"
    dtype: Label = "float32"
    weights_bytes: Count = 0
    kv_bytes: Count = 0
    kv_groups: Annotated[tuple[KVGroup, ...], Meta(min_length=1, max_length=MOST_GROUPS)] = (KVGroup(),)
    embedding_size: Count = 0
    """Numbers of an embedding; 0: this worker makes none."""
    pooling: Literal["last", "mean"] = "last"
    """What embeddings are made of: the last token's hidden state, or all of them."""
    generates: bool = True
    """False: the checkpoint has no output head, so that embeddings are all that it is good for."""
    adapters: Annotated[tuple[Label, ...], Meta(max_length=MOST_ADAPTERS)] = ()
    """LoRA adapters that the workers have loaded, by name."""
    kv_dtype: Label = ""
    """As keys and values are stored; empty: as `dtype`."""

    @property
    def kv_tokens(self) -> tuple[int, int]:
        """(least, most) tokens whose KV the blocks hold: most when all sequences are as long as can be, and
        have left behind what their windows do not reach."""
        least = self.num_blocks // len(self.kv_groups) * self.block_size
        each = blocks_of(self.kv_groups, self.max_model_len, 1, self.block_size)
        return least, max(least, self.num_blocks // each * self.max_model_len if each else 0)


class Attached(Struct, frozen=True, array_like=True, tag="attached"):
    """Answer to Attach; sent again whenever the epoch changes."""

    protocol_version: Count
    fingerprint: Label
    epoch: Epoch
    facts: EngineFacts


class LogprobBlock(Struct, frozen=True, array_like=True):
    """Log-probabilities of n rows, each with the `width` likeliest tokens, best first."""

    rows: Column
    """uint32[n]: which row of the enclosing message (for prompts: offset from first_position)."""
    width: Annotated[int, Meta(ge=0, le=32)]
    chosen: Column
    """float32[n]: of the token that was sampled (for prompts: that stands there)."""
    top_ids: TableColumn
    """int32[n * width]"""
    top_values: TableColumn
    """float32[n * width]"""
    ranks: Column = b""
    """uint32[n], or empty: how many tokens are likelier than the chosen one, plus 1. Of prompts only."""


class PromptLogprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities of a stretch of a request's prompt; stretches may come again after a restart."""

    request_id: RequestId
    first_position: Count
    block: LogprobBlock


class Outputs(Struct, frozen=True, array_like=True, tag="outputs"):
    """What one step produced for one client: one row per token, in columns of equal length."""

    epoch: Epoch
    step: Count
    request_ids: WideColumn
    """uint64[n]"""
    indexes: Column
    """uint32[n]: output index of the row's token: a client with i tokens of the request takes only i."""
    token_ids: Column
    """int32[n]; NO_TOKEN where a request ends without one."""
    finishes: FlagColumn
    """uint8[n]: Finish"""
    logprobs: LogprobBlock | None = None
    started: Annotated[tuple[tuple[RequestId, Count], ...], Meta(max_length=MAX_ENTRIES)] = ()
    """(request, prompt tokens found in the prefix cache) of requests that ran for the first time."""
    prompt_logprobs: Annotated[tuple[PromptLogprobs, ...], Meta(max_length=MAX_ENTRIES)] = ()
    embeddings: Annotated[tuple[tuple[RequestId, Vector], ...], Meta(max_length=MAX_ENTRIES)] = ()
    """(request, its vector, of length 1) of requests that end with a row of this message"""


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """The last message of a request that ends with an error, before or after its first token."""

    request_id: RequestId
    code: Label
    """See errors.BY_CODE."""
    message: Prose
    retryable: bool
    param: Label = ""
    retry_after_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """When it is worth trying again, from the measured rate; 0: unknown"""


class Suspended(Struct, frozen=True, array_like=True, tag="suspended"):
    """No worker is attached for the moment; requests wait. Followed by `Attached`."""

    reason: Label = ""


class AttachRefused(Struct, frozen=True, array_like=True, tag="attach_refused"):
    """Answer to an Attach from another protocol version or schema."""

    protocol_version: Count
    fingerprint: Label
    message: Prose


TIME_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEP_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Distribution(Struct, frozen=True, array_like=True):
    """How often a number was how large."""

    counts: Annotated[tuple[Count, ...], Meta(max_length=64)] = ()
    """Up to each bound, and beyond the last; empty: it never was."""
    total: Annotated[float, Meta(ge=0)] = 0.0
    """All of them together."""


class EngineStats(Struct, frozen=True, array_like=True):
    """Gauges and counters since this engine core started."""

    num_running: Count = 0
    num_waiting: Count = 0
    num_free_blocks: Count = 0
    num_blocks: Count = 0
    steps: Count = 0
    prompt_tokens: Count = 0
    generation_tokens: Count = 0
    prefix_cache_queries: Count = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: Count = 0
    """Prompt tokens found."""
    preemptions: Count = 0
    epochs: Count = 0
    dropped_frames: Count = 0
    stale_messages: Count = 0
    resubmissions: Count = 0
    """Submits of a request that was known already, or that came with ids."""
    crashed_requests: Count = 0
    """Ended because they crashed a worker."""
    detached: Count = 0
    """Requests, running or ended, that are kept for a client that is gone."""
    queue_times: Distribution = Distribution()
    """Requests by the seconds (TIME_BOUNDS_S) that they waited for their first step."""
    prefill_times: Distribution = Distribution()
    """By those from then to their first token."""
    inference_times: Distribution = Distribution()
    """By those from then to their end."""
    step_tokens: Distribution = Distribution()
    """Steps by the number of tokens that they computed (STEP_TOKENS_BOUNDS)."""


class Pong(Struct, frozen=True, array_like=True, tag="pong"):
    """Answer to Ping: proof that the main loop turns."""

    nonce: Count
    epoch: Epoch
    stats: EngineStats


class ControlResult(Struct, frozen=True, array_like=True, tag="control_result"):
    """Answer to Control."""

    nonce: Count
    ok: bool
    message: Prose = ""


EngineMessage = (
    Attached | Suspended | Outputs | Refused | AttachRefused | Pong | ControlResult | Snapshot | Event
)
