"""transformers' continuous batching on the same workload, for comparison: a model of random weights, in a
process of its own.

Cut off when the time is up; then only whole answers count, so what is said is a lower bound.
"""

import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers.generation.continuous_batching.utils import WorkloadHints

from .engine import Request
from .results import Measurement
from .shapes import Shape, write


def measure(
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    workload: Sequence[Request],
    folder: Path,
    end: float,
    cache: tuple[int, int] | None = None,
) -> Iterator[Measurement]:
    """Tokens a second, prompts' own time included. Raises RuntimeError when an answer fails.

    `end`: time.monotonic() at which it is cut off; `cache`: (KV blocks, tokens of a step), None: what fits.
    """
    transformers: Any = import_module("transformers")  # untyped
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(write(shape, folder))
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    settings = transformers.GenerationConfig(
        max_new_tokens=max(request.num_tokens for request in workload),
        do_sample=True,
        temperature=0.6,
        eos_token_id=-1,
        pad_token_id=0,
    )
    num_blocks, step_tokens = cache or (None, None)
    batching = transformers.ContinuousBatchingConfig(num_blocks=num_blocks, max_batch_tokens=step_tokens)
    hints = WorkloadHints(
        max_prompt_length=max(len(request.prompt) for request in workload),
        max_generated_length=settings.max_new_tokens,
        num_requests=len(workload),
    )
    done, tokens = 0, 0
    with model.continuous_batching_context_manager(
        generation_config=settings, continuous_batching_config=batching, workload_hints=hints, block=False
    ) as manager:
        began = time.monotonic()
        for prompt, num_tokens in workload:
            manager.add_request(list(prompt), max_new_tokens=num_tokens)
        while done < len(workload) and time.monotonic() < end:
            result = manager.get_result(timeout=0.1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError(f"continuous batching ended after {done} of {len(workload)} answers")
                continue
            if result.error is not None:
                raise RuntimeError(f"continuous batching: {result.error}")
            done, tokens = done + 1, tokens + len(result.generated_tokens)
        taken = time.monotonic() - began
        if not tokens:
            raise RuntimeError("no answer of continuous batching was complete in time")
        cut = "" if done == len(workload) else f", cut off with {done} answers complete: at least"
        attention = model.config._attn_implementation
        yield Measurement(
            part="offline",
            name=f"{shape.name} bf16, nano-vllm's benchmark by transformers ({attention}){cut}",
            value=tokens / taken,
            unit="tok/s",
            better="higher",
        )
