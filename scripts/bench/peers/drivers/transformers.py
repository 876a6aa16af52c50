"""transformers: batched `generate` and continuous batching, in bfloat16 or the checkpoint's own type."""

import sys
from importlib import import_module
from typing import Any

from .answering import Prompts, answer, check_lengths, claim_stdout


def main(folder: str, threads: str) -> None:
    descriptor = claim_stdout()
    torch: Any = import_module("torch")  # here, because only this process may hold it
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(threads))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(prompts: Prompts, num_tokens: int) -> None:
        """One static batch; the prompts have equal lengths, so no row is padded."""
        ids = torch.tensor(prompts)
        answers = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
        )
        check_lengths([answers.shape[1] - ids.shape[1]] * len(prompts), prompts, num_tokens)

    def continuous(prompts: Prompts, num_tokens: int) -> None:
        settings = transformers.GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        answers = model.generate_batch(inputs=prompts, generation_config=settings)
        check_lengths([len(one.generated_tokens) for one in answers.values()], prompts, num_tokens)

    answer({"generate": generate, "continuous": continuous}, descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
