"""What the weights of a checkpoint take, against what the worker takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.options import ModelOptions
from scripts.model_path import BUNDLED
from scripts.stored_sizes import Config, read_config, weights_bytes
from tests.parity.families import FAMILIES
from tests.parity.reference import write_checkpoint
from tests.scripts.sized_checkpoint import MATRIX, TENSORS, VECTOR, checkpoint
from tests.worker.quantization.checkpoints import write_twins
from tests.worker.quantization.test_fp8 import BLOCKS, in_blocks, per_tensor
from worker.checkpoint import Checkpoint
from worker.models.registry import build
from worker.parallel import Group


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, 2 * (MATRIX + VECTOR)),
        ({"dtype": "float32"}, 4 * (MATRIX + VECTOR)),
        ({"quantization": "int8"}, MATRIX + 2 * VECTOR),
        ({"quantization": "int4"}, MATRIX * 9 // 16 + 2 * VECTOR),
        ({"quantization": "int4", "quantization_group": 128}, MATRIX * 33 // 64 + 2 * VECTOR),
    ],
)
def test_weights_are_counted_as_they_will_be_kept(
    tmp_path: Path, model: dict[str, str], expected: int
) -> None:
    folder = checkpoint(tmp_path / "m")
    config = Config(torch_dtype="bfloat16", tie_word_embeddings=True)
    assert weights_bytes(ModelOptions(model=str(folder), **model), config) == expected  # type: ignore[arg-type]


def test_a_quantized_checkpoint_counts_as_its_parts_are_kept(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "m", {"q.weight": ("I32", [8, 8]), "q.scales": ("F16", [8]), "z": ("F8_E4M3", [4])}
    )
    assert weights_bytes(ModelOptions(model=str(folder)), Config(quantization_config={})) == (
        4 * 64 + 4 * 8 + 4
    )


def test_shards_are_added_up(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_bytes(
        ModelOptions(model=str(folder)), Config(torch_dtype="float16", tie_word_embeddings=False)
    ) == (2 * (2 * MATRIX + VECTOR))


def test_what_no_model_loads_is_not_counted(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [64]),
        "h.0.attn.bias": ("F32", [1, 1, 1024, 1024]),
        "model.layers.4.mlp.up_proj.weight": ("BF16", [100, 100]),
        "vision_tower.encoder.layers.0.mlp.fc1.weight": ("BF16", [100, 100]),
        "lm_head.weight": ("BF16", [100, 100]),
        "model.layers.3.mlp.up_proj.weight": ("BF16", [10, 10]),
    }
    folder = checkpoint(tmp_path / "m", tensors)
    config = read_config(str(folder))
    assert config is not None
    assert weights_bytes(ModelOptions(model=str(folder)), config) == 2 * 100


def test_of_a_model_that_can_see_the_text_part_counts(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 2, "max_position_embeddings": 99}
    config = read_config(str(checkpoint(tmp_path / "m", text_config=text)))
    assert config is not None
    assert (config.num_hidden_layers, config.max_position_embeddings) == (2, 99)
    assert config.dtype_bytes("auto") == 2


def close_below(folder: Path, **model: Any) -> bool:
    """Whether the estimate is a lower bound of what the worker takes, and a good one: of matrices as small as
    these, what fills up the last group of each row is up to a tenth."""
    options, config = ModelOptions(model=str(folder), **model), read_config(str(folder))
    assert config is not None
    _, wants = build(Checkpoint(folder, with_weights=True, may_map=False), options, Group())
    return 0.88 * wants.num_bytes() <= weights_bytes(options, config) <= wants.num_bytes()


@pytest.mark.parametrize("scheme", ["none", "int8", "int4", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_worker_takes_as_much(family: str, scheme: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[family]
    folder = write_checkpoint(tmp_path / "m", model_type, **changes)
    assert close_below(folder, quantization=scheme)
    assert close_below(folder, dtype="bfloat16", quantization=scheme, quantize_head=False)


def test_the_worker_takes_as_much_for_the_bundled_model() -> None:
    assert close_below(BUNDLED)
    assert close_below(BUNDLED, quantization="int4", quantization_group=128)


def test_the_worker_takes_as_much_for_quantized_checkpoints(tmp_path: Path) -> None:
    blocks = write_twins(tmp_path / "a", in_blocks(128), BLOCKS, "qwen3", hidden_size=256)
    assert close_below(blocks.quantized)
    whole = {"quant_method": "fp8", "activation_scheme": "static"}
    assert close_below(write_twins(tmp_path / "b", per_tensor, whole).quantized)
