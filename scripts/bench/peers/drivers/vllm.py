"""vLLM for CPUs, offline, eager, in bfloat16."""

import os
import sys
from importlib import import_module
from typing import Any

from .answering import Prompts, answer, check_lengths, claim_stdout

KV_CACHE_GIB = "2"


def main(folder: str, threads: str) -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = KV_CACHE_GIB
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{int(threads) - 1}"
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    descriptor = claim_stdout()
    vllm: Any = import_module("vllm")
    engine = vllm.LLM(
        folder, dtype="bfloat16", enforce_eager=True, max_model_len=2048, enable_prefix_caching=False
    )

    def generate(prompts: Prompts, num_tokens: int) -> None:
        settings = vllm.SamplingParams(
            temperature=0, ignore_eos=True, max_tokens=num_tokens, detokenize=False
        )
        answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        check_lengths([len(one.outputs[0].token_ids) for one in answers], prompts, num_tokens)

    answer({"generate": generate}, descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
