"""Options of `tern bench NAME`, declared as those of `tern serve` are (protocol/options.py)."""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Tokens = Annotated[int, Meta(ge=1, description="of each answer", extra={"unit": "tokens"})]
Repetitions = Annotated[int, Meta(ge=1, description="how often everything is measured")]
Threads = Annotated[int, Meta(ge=0, description="of the other engines; 0: one a core")]
PerTask = Annotated[int, Meta(ge=1, description="prompts of each of the bundled model's tasks")]


class Overhead(Struct, frozen=True, kw_only=True):
    """What the stack itself costs, with the stub worker."""

    streams: Annotated[int, Meta(ge=1, description="open at once")] = 256
    tokens: Tokens = 600
    repetitions: Repetitions = 5


class Model(Struct, frozen=True, kw_only=True):
    """A real model, beside transformers."""

    model: Annotated[str, Meta(description="folder or hub id; empty: the bundled one")] = ""
    vocab_size: Annotated[int, Meta(gt=300, description="prompts are random ids below it")] = 2048
    concurrency: Annotated[tuple[Count, ...], Meta(description="streams at once, each measured")] = (
        1,
        8,
        32,
        128,
    )
    prompt_tokens: Annotated[int, Meta(ge=1, description="of each prompt", extra={"unit": "tokens"})] = 64
    tokens: Tokens = 128
    repetitions: Repetitions = 3
    peer_threads: Threads = 0
    peers: Annotated[bool, Meta(description="measure transformers, too")] = True


class Peers(Struct, frozen=True, kw_only=True):
    """Other engines for CPUs on the same machine, in turn with ours."""

    folder: Annotated[str, Meta(description="keeps their environments and models; some 15 GB")] = ""
    kinds: Annotated[tuple[Literal["bf16", "int8", "int4"], ...], Meta(description="of weights")] = (
        "bf16",
        "int8",
        "int4",
    )
    only: Annotated[tuple[str, ...], Meta(description="of the engines; left out: all")] = ()
    repetitions: Repetitions = 3
    threads: Threads = 0


class Structured(Struct, frozen=True, kw_only=True):
    """Answers to a schema, beside free ones."""

    streams: Annotated[int, Meta(ge=1, description="open at once")] = 16
    tokens: Tokens = 200
    repetitions: Repetitions = 5


class Rest(Struct, frozen=True, kw_only=True):
    """Memory, idle CPU and time to ready."""

    seconds: Annotated[float, Meta(gt=0, description="of idling")] = 10


class Recover(Struct, frozen=True, kw_only=True):
    """How long streams pause when something dies or hangs."""

    repetitions: Annotated[int, Meta(ge=1, description="of each fault")] = 20
    goodput_seconds: Annotated[float, Meta(gt=0, description="with faults, and again without")] = 120


class Restart(Struct, frozen=True, kw_only=True):
    """How soon a stream goes on whose worker is killed, with any model."""

    repetitions: Annotated[int, Meta(ge=1, description="kills of one server's worker")] = 3


class Overload(Struct, frozen=True, kw_only=True):
    """How soon a full server refuses."""

    requests: Annotated[int, Meta(ge=1, description="that are refused")] = 2000
    at_once: Annotated[int, Meta(ge=1, description="of these, beside 128 streams that fill the server")] = 4


class Context(Struct, frozen=True, kw_only=True):
    """A decoded token's cost as contexts and batches grow."""

    model: Annotated[str, Meta(description="folder or hub id; empty: the bundled one")] = ""
    quantization: Annotated[Literal["none", "int8", "int4"], Meta(description="of its weights")] = "none"
    kv_cache_dtype: Annotated[Literal["auto", "int8"], Meta(description="as of tern serve")] = "auto"
    contexts: Annotated[tuple[Count, ...], Meta(description="tokens")] = (128, 512, 2048, 8192, 32768)
    batches: Annotated[tuple[Count, ...], Meta(description="sequences")] = (1, 4, 16, 64, 128)
    steps: Annotated[int, Meta(ge=1, description="timed of each")] = 8
    kv_gib: Annotated[int, Meta(ge=1, description="memory for KV; what does not fit is left out")] = 8
    plot: Annotated[str, Meta(description="an SVG file to write; empty: none")] = ""


class Kernels(Struct, frozen=True, kw_only=True):
    """Matrix multiplication alone, beside torch's."""

    rows: Annotated[tuple[Count, ...], Meta(description="of activations")] = (1, 4, 16, 64, 256, 1024)
    repetitions: Repetitions = 7


class Growth(Struct, frozen=True, kw_only=True):
    """Memory over many requests, with the stub worker."""

    requests: Annotated[int, Meta(ge=1, description="that are answered")] = 10_000


class Quality(Struct, frozen=True, kw_only=True):
    """Exact match on the bundled model's held-out prompts."""

    per_task: PerTask = 50


class Quantization(Struct, frozen=True, kw_only=True):
    """What rounding the bundled model's weights costs."""

    per_task: PerTask = 50


Benchmark = (
    Overhead
    | Model
    | Peers
    | Structured
    | Rest
    | Recover
    | Restart
    | Overload
    | Context
    | Kernels
    | Growth
    | Quality
    | Quantization
)
BENCHMARKS: dict[str, type[Benchmark]] = {kind.__name__.lower(): kind for kind in get_args(Benchmark)}
"""By name, as it is typed."""
