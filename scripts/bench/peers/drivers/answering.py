"""The driver's side of the exchange with peer.py: "ready", then one number of seconds per line of JSON."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping

Prompts = list[list[int]]
Method = Callable[[Prompts, int], None]
"""(prompts, number of tokens to answer each with): returns when all answers are complete. Raises when an
answer has another length."""


def claim_stdout() -> int:
    """A descriptor for the exchange; what the engine prints from now on goes to stderr."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return mine


def answer(methods: Mapping[str, Method], descriptor: int) -> None:
    """Until stdin ends: each line is `[method, prompts, num_tokens]`, each answer its wall seconds."""
    with os.fdopen(descriptor, "w") as answers:
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            name, prompts, num_tokens = json.loads(line)
            began = time.perf_counter()
            methods[name](prompts, num_tokens)
            print(time.perf_counter() - began, file=answers, flush=True)


def check_lengths(lengths: list[int], prompts: Prompts, num_tokens: int) -> None:
    """Raises ValueError unless every answer has been made in full."""
    if lengths != [num_tokens] * len(prompts):
        raise ValueError(f"asked for {len(prompts)} answers of {num_tokens} tokens, got {lengths}")
