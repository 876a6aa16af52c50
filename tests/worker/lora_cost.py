"""What adapters cost on the CPU, in CPU time of one core, so that what else runs on the machine matters less.

python -m tests.worker.lora_cost [SECONDS]
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec

from protocol.options import ParallelOptions
from tests.worker.adapters import write_adapter
from tests.worker.driver import Driver, Resident, quiet, worker_config, write_config
from worker.runner import TorchRunner

LAYERS, ROWS, CONTEXT, PROMPT, RANK = 7, 16, 48, 512, 16
MODEL: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16", "vocab_size": 2048, "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
"""A quarter of Qwen3-0.6B, without its vocabulary."""
SHAPES = {
    "self_attn.q_proj": (2048, 1024), "self_attn.k_proj": (1024, 1024), "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (1024, 2048), "mlp.gate_proj": (3072, 1024), "mlp.up_proj": (3072, 1024),
    "mlp.down_proj": (1024, 3072),
}  # fmt: skip
NAMES = ("a", "b", "c", "d")


def make(folder: Path, lora: list[str]) -> Driver:
    model = write_config(folder / "model", **MODEL)
    config = worker_config(
        model,
        folder,
        max_num_seqs=2 * ROWS + 1,
        num_kv_blocks=1000,
        block_size=32,
        load_format="dummy",
        lora=lora,
    )
    parallel = ParallelOptions(threads=1, cpu_kernels="native")
    return Driver(TorchRunner(msgspec.structs.replace(config, parallel=parallel), quiet))


def rows_of(driver: Driver, names: tuple[str, ...]) -> list[Resident]:
    """That decode."""
    prompts = [[(7 * i + row) % 2000 for i in range(CONTEXT)] for row in range(ROWS)]
    seqs = [driver.add(prompt, adapter=names[row % len(names)]) for row, prompt in enumerate(prompts)]
    driver.run(seqs, 2)
    return seqs


def seconds(driver: Driver, counts: dict[Resident, int]) -> float:
    begun = time.process_time()
    driver.step(counts)
    return time.process_time() - begun


def main(duration_s: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        modules = {f"model.layers.{i}.{n}": shape for i in range(LAYERS) for n, shape in SHAPES.items()}
        lora = [
            f"{n}={write_adapter(folder / n, modules, seed=i, r=RANK, std=0.02)}" for i, n in enumerate(NAMES)
        ]
        bare, loaded = make(folder, []), make(folder, lora)
    cases = {
        "none loaded": (bare, rows_of(bare, ("",))),
        "4 loaded, none asked for": (loaded, rows_of(loaded, ("",))),
        "4 loaded, 4 rows each": (loaded, rows_of(loaded, NAMES)),
    }
    times: dict[str, list[float]] = {case: [] for case in cases}
    prompts: dict[str, list[float]] = {"": [], "a": []}
    begun = time.monotonic()
    while time.monotonic() - begun < duration_s:
        for case, (driver, seqs) in cases.items():
            times[case] += [seconds(driver, dict.fromkeys(seqs, 1)) for _ in range(3)]
        for adapter, found in prompts.items():
            seq = loaded.add([i % 2000 for i in range(PROMPT)], adapter=adapter)
            found.append(seconds(loaded, {seq: PROMPT}))
            loaded.drop(seq)
    for case, found in times.items():
        _show(f"decode, {ROWS} rows, {case}", found, times["none loaded"])
    for adapter, found in prompts.items():
        _show(f"prompt of {PROMPT}, {'adapter' if adapter else 'none'}", found, prompts[""])


def _show(what: str, found: list[float], base: list[float]) -> None:
    print(
        f"{what:44s} best {min(found) * 1e3:7.2f} ms ({min(found) / min(base):.2f})  "
        f"median {median(found) * 1e3:7.2f} ms ({median(found) / median(base):.2f})  n = {len(found)}"
    )


if __name__ == "__main__":
    main(float((sys.argv[1:] or ["30"])[0]))
