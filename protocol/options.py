"""Every option of Tern, declared once; those of the frontends are in frontend_options.py. Flags, environment,
`--config` files and help come from here.

Options are grouped in frozen sections; `ServeOptions` is all of them, and config.py says which process is
handed which.

An option's `Meta(description=…)` is its help text. `extra` may hold: `flag` (another spelling),
`unit="bytes"` (accepts 512MiB, 4GB) or `unit="tokens"` (accepts 8k), `secret` (never shown, not a flag
value to log).
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .frontend_options import FrontendOptions

DEFAULT_CRASH_DIR = "~/.local/state/tern/crashes"


class ModelOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model is served."""

    model: Annotated[
        str,
        Meta(description="folder of a checkpoint, or a hub id in the local cache; empty: the bundled model"),
    ] = ""
    tokenizer: Annotated[str, Meta(description="folder of another tokenizer; empty: the model's")] = ""
    served_model_name: Annotated[
        tuple[str, ...],
        Meta(description="names that clients may ask for; the first is reported; none: the folder's name"),
    ] = ()
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="of weights, computation and KV; auto: the checkpoint's"),
    ] = "auto"
    max_model_len: Annotated[
        int,
        Meta(
            ge=0,
            description="longest prompt plus answer; 0: what the model and the memory allow",
            extra={"unit": "tokens"},
        ),
    ] = 0
    seed: Annotated[
        int, Meta(ge=0, description="from which requests without a seed draw theirs; 0: from the system")
    ] = 0
    model_impl: Annotated[
        Literal["auto", "tern", "transformers"],
        Meta(
            description="whose code computes the model: Tern's own declaration of its family, or that of "
            "transformers, which is slower; auto: Tern's where there is one"
        ),
    ] = "auto"
    load_format: Annotated[
        Literal["safetensors", "dummy"],
        Meta(description="dummy: random weights of the config's shapes, for benchmarks"),
    ] = "safetensors"
    mmap: Annotated[
        bool,
        Meta(
            description="map the files of weights, so that workers share what is used as it is stored; off: "
            "read them, for files that may change"
        ),
    ] = True
    keep_weights: Annotated[
        bool,
        Meta(
            description="prepare weights for the kernels in C in memory that outlives a worker, so that the "
            "next one has them at once; no memory besides, but it is taken while no worker runs, too"
        ),
    ] = True
    compress_weights: Annotated[
        bool,
        Meta(
            description="the kernels in C hold bfloat16 weights in 12 bits a number, without loss, where "
            "the processor has AVX512-BF16: less memory; up to 10 sequences are faster, more slightly slower"
        ),
    ] = True
    quantization: Annotated[
        Literal["none", "int8", "fp8", "int4", "nf4"],
        Meta(
            description="round the weights of an unquantized checkpoint while they are loaded; quantized "
            "checkpoints are recognized without it",
            extra={"flag": "-q"},
        ),
    ] = "none"
    quantization_group: Annotated[
        int,
        Meta(
            ge=32,
            le=4096,
            multiple_of=32,
            description="with int4: columns that share a scale; 128 is faster and less exact",
        ),
    ] = 32
    quantization_cache: Annotated[
        str,
        Meta(description="folder that keeps rounded weights, which the next start maps; empty: none"),
    ] = ""
    lora: Annotated[
        tuple[str, ...],
        Meta(description="LoRA adapters (PEFT's layout) as NAME=FOLDER, chosen by a request's `model`: NAME"),
    ] = ()
    quantize_head: Annotated[bool, Meta(description="with quantization: the output head too, to 8 bits")] = (
        True
    )


class CacheOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The paged KV cache."""

    block_size: Annotated[int, Meta(ge=1, le=1024, description="tokens per KV block")] = 32
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8", "int8"],
        Meta(
            description="of stored keys and values; fp8 (e4m3), int8: one byte a number and a scale for each "
            "vector of a head, which about halves the cache of 16-bit models; auto: the model's"
        ),
    ] = "auto"
    kv_cache_memory: Annotated[
        int,
        Meta(
            ge=0, description="bytes for KV per worker; 0: a share of what is free", extra={"unit": "bytes"}
        ),
    ] = 0
    gpu_memory_utilization: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of a GPU's memory that its worker may take: weights, what a step needs, KV in "
            "all the rest",
        ),
    ] = 0.9
    num_kv_blocks: Annotated[
        int,
        Meta(
            ge=0,
            description="exact number of blocks, overrides the memory; 0: computed. Where only some layers "
            "have a sliding window, so many tokens take a block for each group of layers",
        ),
    ] = 0
    enable_prefix_caching: Annotated[
        bool, Meta(description="find the KV of shared prompt prefixes again")
    ] = True


class SchedulerOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs in a step. Each switch turns one optimization off, for measurement."""

    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="requests that run at once")] = 256
    max_num_batched_tokens: Annotated[
        int, Meta(ge=1, le=1 << 20, description="tokens computed in one step", extra={"unit": "tokens"})
    ] = 2048
    max_num_waiting: Annotated[
        int, Meta(ge=0, description="requests that wait; more are refused with 429")
    ] = 4096
    max_waiting_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="prompt tokens that wait; more are refused with 429; 0: sixteen times what the KV "
            "blocks hold",
            extra={"unit": "tokens"},
        ),
    ] = 0
    enable_chunked_prefill: Annotated[
        bool,
        Meta(
            description="split long prompts over steps; off: a prompt is computed in one step of its own size"
        ),
    ] = True
    async_scheduling: Annotated[
        bool, Meta(description="plan and send a step before the result of the one before is back")
    ] = True
    inter_token_target_ms: Annotated[
        float,
        Meta(
            ge=0,
            description="prompt chunks that share a step with running answers are sized, from measured "
            "step times, to keep the step this short, or to share time by heads where it cannot be; 0: no "
            "limit but max_num_batched_tokens",
        ),
    ] = 50.0
    watermark: Annotated[
        float, Meta(ge=0, lt=1, description="share of KV blocks kept free when a request is admitted")
    ] = 0.01

    def largest_chunk(self, max_model_len: int) -> int:
        """Tokens of one request that one step may compute at most."""
        most = self.max_num_batched_tokens
        return most if self.enable_chunked_prefill else max(most, max_model_len)


class ParallelOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is spread over workers."""

    tensor_parallel_size: Annotated[
        int, Meta(ge=1, le=64, description="workers that share each layer", extra={"flag": "-tp"})
    ] = 1
    worker: Annotated[
        Literal["torch", "stub"],
        Meta(description="stub: a model that is a hash, without torch, for tests and overhead measurements"),
    ] = "torch"
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(
            description="where the workers compute; cuda: each on an NVIDIA GPU of its own, of compute "
            "capability 8.0 or newer; auto: there, if there are enough of them, else on the CPU"
        ),
    ] = "auto"
    threads: Annotated[
        int, Meta(ge=0, description="CPU threads per worker; 0: the physical cores, shared among workers")
    ] = 0
    cpu_kernels: Annotated[
        Literal["auto", "native", "torch"],
        Meta(
            description="native: kernels in C, compiled by the system's compiler at the first start; torch: "
            "those of torch; auto: native if there is a compiler"
        ),
    ] = "auto"
    enforce_eager: Annotated[
        bool, Meta(description="call each kernel from Python: play no recorded steps, capture no graphs")
    ] = False
    batch_invariant: Annotated[
        Literal["auto", "on"],
        Meta(
            description="on: a request's numbers are the same to the bit whatever runs beside it, however it "
            "is cut into steps; on the CPU they are, with the kernels in C; on a GPU it costs speed; auto: "
            "what is fastest"
        ),
    ] = "auto"
    programmatic_launch: Annotated[
        Literal["off", "on"],
        Meta(
            description="on: kernels of a decode step are launched while the one before still computes "
            "(programmatic dependent launch), on GPUs of compute capability 9.0 or newer; none has run it yet"
        ),
    ] = "off"


class ServerOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The supervisor."""

    max_restarts: Annotated[
        int,
        Meta(
            ge=0,
            description="restarts of one kind of process within restart_window_s before the server gives up",
        ),
    ] = 5
    restart_window_s: Annotated[float, Meta(gt=0, description="see max_restarts")] = 60.0
    shutdown_timeout: Annotated[
        float, Meta(ge=0, description="seconds that open streams get to finish after SIGTERM")
    ] = 5.0
    run_dir: Annotated[
        str, Meta(description="folder for sockets, made with mode 0700; empty: a new temporary one")
    ] = ""
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"], Meta(description="least level that is logged")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="json: each line of the log is an object")
    ] = "text"
    status_interval: Annotated[
        float,
        Meta(ge=0, description="seconds between lines on what is running, while something is; 0: none"),
    ] = 10.0
    hang_detection: Annotated[
        bool, Meta(description="kill and restart what makes no progress; off for debuggers")
    ] = True
    journal: Annotated[
        str,
        Meta(
            description="file in which requests, plans and results are recorded for `tern replay`; empty: off"
        ),
    ] = ""
    journal_bytes: Annotated[
        int, Meta(ge=1 << 16, description="the journal's size at most", extra={"unit": "bytes"})
    ] = 256 << 20
    crash_dir: Annotated[
        str,
        Meta(description="folder for a small report of each death of a worker; empty: none is written"),
    ] = DEFAULT_CRASH_DIR
    engine_endpoint: Annotated[
        str,
        Meta(
            description="tcp://ADDRESS:PORT on which the engine core also serves clients; needs the next two"
        ),
    ] = ""
    curve_secret_key: Annotated[
        str, Meta(description="file of the engine core's secret key, made by `tern keys FILE`")
    ] = ""
    curve_allowed_keys: Annotated[
        str, Meta(description="file of the public keys (Z85) of the clients that are let in, one a line")
    ] = ""


class ServeOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `tern serve`."""

    model: ModelOptions = ModelOptions()
    cache: CacheOptions = CacheOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    parallel: ParallelOptions = ParallelOptions()
    frontend: FrontendOptions = FrontendOptions()
    server: ServerOptions = ServerOptions()
