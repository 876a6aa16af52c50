"""Whether a model can fit, before anything is loaded; and whether what was asked of its context can be.

Everything here is a lower bound: what it refuses cannot run, however the worker goes about it. The worker,
which knows the model's layers, counts exactly (worker/kv_cache.py) and fits the context to what is left.
"""

from protocol.errors import OutOfMemory, StartupError
from protocol.options import ModelOptions, ServeOptions
from worker.memory import gpu_driver, set_aside

from .quantities import amount
from .stored_sizes import DTYPE_BYTES, Config, read_config, rounded_bytes, weights_bytes

STORED_BYTES = 4
"""Of a number in a checkpoint, at most."""


def check(options: ServeOptions, available: int) -> None:
    """Raises OutOfMemory or StartupError, with the numbers and the options that change them. What cannot be
    read here is left to the worker, which says what is wrong with it; so is what a GPU's memory may hold."""
    model = options.model
    config = read_config(model.model)
    if options.parallel.worker == "stub" or config is None:
        return
    longest = config.max_position_embeddings
    if 0 < longest < model.max_model_len:
        raise StartupError(
            f"--max-model-len {model.max_model_len} is longer than the model's {longest} positions",
            hint=f"use at most {longest}, or leave it out",
        )
    if model.load_format == "dummy" or _may_be_on_gpu(options.parallel.device):
        return
    weights = weights_bytes(model, config)
    if weights > available:
        lighter = "" if model.quantization in ("int4", "nf4") else " --quantization int4 needs less;"
        raise OutOfMemory(
            f"the weights take at least {amount(weights)}, but {amount(available)} of memory are available",
            hint=f"{lighter} use a smaller model, or free memory".strip(),
        )
    _check_context(options, config, available - weights)


def _may_be_on_gpu(device: str) -> bool:
    """So that what the machine's memory holds says nothing: the worker, which knows the GPU's, refuses."""
    return device == "cuda" or (device == "auto" and gpu_driver())


def most_download_bytes(options: ModelOptions, available: int) -> int:
    """Stored weights of more bytes than this cannot fit, whatever is done to them."""
    kept = float(DTYPE_BYTES.get(options.dtype, STORED_BYTES))
    if options.quantization != "none":
        kept = min(kept, rounded_bytes(options))
    return int(available * STORED_BYTES / kept)


def _check_context(options: ServeOptions, config: Config, left: int) -> None:
    """One block must fit, and a context that is fixed once. Otherwise the worker fits it."""
    cache, wanted = options.cache, options.model.max_model_len
    block = cache.block_size * config.kv_bytes_per_token(options.model.dtype, cache.kv_cache_dtype)
    if not block or options.parallel.tensor_parallel_size > 1 or cache.num_kv_blocks:
        return
    memory = cache.kv_cache_memory or set_aside(left)
    if block > memory and cache.kv_cache_memory:
        raise OutOfMemory(
            f"--kv-cache-memory {amount(memory)}: not one block fits, of {cache.block_size} tokens"
            f" and {amount(block)}",
            hint=f"give it {block} bytes or more, or lower --block-size",
        )
    needed = -(-wanted // cache.block_size) * block
    if needed > memory:
        fits = memory // block * cache.block_size
        source = "--kv-cache-memory is" if cache.kv_cache_memory else f"of {amount(left)} beside the weights,"
        kept = f"{source} {amount(memory)}" + ("" if cache.kv_cache_memory else " are set aside")
        raise OutOfMemory(
            f"one sequence of --max-model-len {wanted} needs {amount(needed)} of KV, but {kept}",
            hint=f"--max-model-len {fits} would fit, or give --kv-cache-memory {needed}",
        )
