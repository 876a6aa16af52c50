"""The same prompts through transformers, in a process of its own: batched `generate` and continuous batching.

The process is idle while our stack is measured, and ours while it is. They exchange lines of JSON.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

Prompts = list[list[int]]


class Peer:
    """One call is one measurement."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def seconds(self, method: str, prompts: Prompts, num_tokens: int) -> float:
        """`method` is "generate" or "continuous": wall seconds until all answers are complete."""
        questions, answers = self._pipes()
        questions.write(json.dumps([method, prompts, num_tokens]) + "\n")
        questions.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"transformers, {method}: the process ended with {self._process.wait()}")
        return float(answer)

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@contextmanager
def transformers_peer(model: str, threads: int) -> Iterator[Peer]:
    """A process with the model loaded."""
    command = [sys.executable, "-m", "scripts.bench.peers", model, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Peer(process)
        finally:
            process.terminate()


def main(path: str, threads: str) -> None:
    """Answer each line `[method, prompts, num_tokens]` with its seconds."""
    torch: Any = import_module("torch")  # here, because only this process may hold it
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(threads))
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()

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
        assert answers.shape[1] == ids.shape[1] + num_tokens

    def continuous(prompts: Prompts, num_tokens: int) -> None:
        settings = transformers.GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        answers = model.generate_batch(inputs=prompts, generation_config=settings)
        assert all(len(answer.generated_tokens) == num_tokens for answer in answers.values())

    methods = {"generate": generate, "continuous": continuous}
    for line in sys.stdin:
        name, prompts, num_tokens = json.loads(line)
        began = time.perf_counter()
        methods[name](prompts, num_tokens)  # both turn gradients off themselves
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
