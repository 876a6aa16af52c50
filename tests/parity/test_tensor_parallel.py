"""Two real ranks compute what one computes, and both sample the same tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.families import FAMILIES
from tests.parity.rank import sample
from tests.parity.reference import write_checkpoint
from tests.parity.test_lora import write_three
from tests.worker.quantization.checkpoints import write_twins
from tests.worker.quantization.test_fp8 import in_blocks

DEADLINE_S = 110

ADAPTED = "with adapters: "
IN_BLOCKS = "fp8 in blocks, some of which are split"
BLOCKS = {"quant_method": "fp8", "weight_block_size": [32, 32]}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "KV heads split, a vocabulary that 2 does not divide": (
        "llama",
        {"vocab_size": 97, "tie_word_embeddings": True},
    ),
    "one KV head, on both ranks": (
        "llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    IN_BLOCKS: ("llama", {"intermediate_size": 192}),
    **FAMILIES,
    **{f"{ADAPTED}{family}": FAMILIES[family] for family in ("qwen3", "phi3", "gpt2")},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each shape."""
    found = {name: tmp_path_factory.mktemp("group") for name in SHAPES}
    for name, (model_type, changes) in SHAPES.items():
        if name == IN_BLOCKS:
            twins = write_twins(found[name], in_blocks(32), BLOCKS, model_type, **changes)
            twins.quantized.rename(found[name] / "model")
        else:
            model = write_checkpoint(found[name] / "model", model_type, **changes)
            if name.startswith(ADAPTED):
                write_three(found[name] / "adapters", model)
    return found


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> list[dict[str, dict[str, Any]]]:
    """Of each rank, for each shape."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parity.rank", rank, "2", *map(str, folders.values())],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        found = [json.loads(rank.communicate(timeout=DEADLINE_S)[0]) for rank in ranks]
        return [dict(zip(folders, answer, strict=True)) for answer in found]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize("shape", SHAPES)
def test_two_ranks_equal_one(
    shape: str, folders: dict[str, Path], answers: list[dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    first, second = (answer[shape] for answer in answers)
    alone = sample(folders[shape] / "model", tmp_path, 0, 1)
    assert first == second
    assert first["kv_heads"] == max(alone["kv_heads"] // 2, 1)
    assert first["greedy"] == alone["greedy"]
    assert first["seeded"] == alone["seeded"]
    # 1e-4: the sums over heads and inner columns are split, so their last bits differ.
    ours, theirs = torch.tensor(first["logprobs"]), torch.tensor(alone["logprobs"])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
