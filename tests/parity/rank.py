"""One rank of a tensor-parallel group, as a process: prints what it sampled of fixed sequences.

python -m tests.parity.rank CHECKPOINT GROUP_DIR RANK SIZE
"""

import json
import sys
from pathlib import Path
from typing import Any

from protocol.sampling import SamplingParams
from tests.worker.driver import Driver, quiet, worker_config
from worker.runner import TorchRunner


def sample(checkpoint: Path, group_dir: Path, rank: int, size: int) -> dict[str, Any]:
    """Greedy with log-probabilities of everything, and seeded sampling beside it; each with an adapter, if
    there are any beside the checkpoint."""
    adapters = sorted((checkpoint.parent / "adapters").glob("*"))
    lora = [f"{folder.name}={folder}" for folder in adapters]
    runner = TorchRunner(worker_config(checkpoint, group_dir, rank=rank, size=size, lora=lora), quiet)
    driver = Driver(runner)
    vocab = runner.facts.vocab_size
    everything = SamplingParams(temperature=0, logprobs=vocab, prompt_logprobs=vocab)
    first, second = (adapters[0].name, adapters[-1].name) if adapters else ("", "")
    greedy = driver.add([i * 7 % vocab for i in range(20)], everything, adapter=first)
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=3)
    seeded = driver.add([i * 5 % vocab for i in range(9)], drawn, adapter=second)
    driver.run([greedy, seeded], 24, chunk=6)
    rows = [greedy.prompt_logprobs[i] for i in range(1, 20)] + greedy.logprobs
    return {
        "greedy": greedy.outputs,
        "seeded": seeded.outputs,
        "logprobs": [[row[token] for token in range(vocab)] for row in rows],
        "kv_heads": runner.served.model.num_kv_heads,
    }


if __name__ == "__main__":
    rank, size, *folders = sys.argv[1:]
    found = [sample(Path(f) / "model", Path(f), int(rank), int(size)) for f in folders]
    print(json.dumps(found))
