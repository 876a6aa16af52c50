"""What can be known of a model's memory before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from protocol.errors import OutOfMemory
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, ServeOptions
from scripts import memory_plan
from scripts.memory_plan import Config, check, weights_bytes
from scripts.model_path import BUNDLED

CONFIG = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64,
    "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
TENSORS = {
    "embed.weight": ("BF16", [1000, 64]),
    "norm.weight": ("BF16", [64]),
    "lm_head.weight": ("BF16", [1000, 64]),
}
MATRIX, VECTOR = 64000, 64
KV_PER_TOKEN = 2 * 4 * 2 * 8 * 2


def checkpoint(folder: Path, tensors: dict[str, tuple[str, list[int]]] | None = None, **config: Any) -> Path:
    """As much of one as has sizes; the data is not there."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {
        name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]}
        for name, (kind, shape) in (tensors or TENSORS).items()
    }
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    return folder


def options(folder: Path, **model: Any) -> ServeOptions:
    return ServeOptions(model=ModelOptions(model=str(folder), **model))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, 2 * (MATRIX + VECTOR)),
        ({"dtype": "float32"}, 4 * (MATRIX + VECTOR)),
        ({"quantization": "int8"}, MATRIX + 2 * VECTOR),
        ({"quantization": "int4"}, MATRIX // 2 + 2 * VECTOR),
    ],
)
def test_weights_are_counted_as_they_will_be_kept(
    tmp_path: Path, model: dict[str, str], expected: int
) -> None:
    folder = checkpoint(tmp_path / "m")
    config = Config(torch_dtype="bfloat16", tie_word_embeddings=True)
    assert weights_bytes(ModelOptions(model=str(folder), **model), config) == expected  # type: ignore[arg-type]


def test_a_quantized_checkpoint_counts_as_it_is_stored(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "m", {"q.weight": ("I32", [8, 8]), "q.scales": ("F16", [8]), "z": ("F8_E4M3", [4])}
    )
    assert weights_bytes(ModelOptions(model=str(folder)), Config(quantization_config={})) == 4 * 64 + 16 + 4


def test_weights_that_do_not_fit_are_refused_with_numbers_and_the_remedy(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    needed = 2 * (MATRIX + VECTOR)
    check(options(folder), needed)
    with pytest.raises(OutOfMemory, match=r"at least 125 KiB, but 125 KiB of memory are available") as caught:
        check(options(folder), needed - 1)
    assert "--quantization int4" in caught.value.hint
    check(options(folder, quantization="int8"), needed - 1)


def test_a_fixed_context_that_does_not_fit_once_names_the_one_that_does(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    given = structs.replace(
        options(folder, max_model_len=64),
        cache=CacheOptions(kv_cache_memory=64 * KV_PER_TOKEN, block_size=16),
    )
    check(given, 1 << 30)
    longer = structs.replace(given, model=structs.replace(given.model, max_model_len=65))
    with pytest.raises(
        OutOfMemory, match=r"one sequence of --max-model-len 65 needs 20\.0 KiB of KV"
    ) as caught:
        check(longer, 1 << 30)
    assert caught.value.hint == f"--max-model-len 64 would fit, or give --kv-cache-memory {80 * KV_PER_TOKEN}"
    free = options(folder, max_model_len=1 << 20)
    with pytest.raises(OutOfMemory, match=r"but of 99\.\d MiB beside the weights, 25\.0 MiB are set aside"):
        check(free, 100 << 20)
    check(options(folder), 1 << 20)


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 8},
        {"layer_types": ["full_attention"]},
        {"text_config": {}},
        {"num_attention_heads": 0},
    ],
)
def test_what_is_not_known_is_left_to_the_worker(tmp_path: Path, config: dict[str, Any]) -> None:
    check(options(checkpoint(tmp_path / "m", **config), max_model_len=1 << 30), 1 << 20)


def test_files_that_cannot_be_read_are_left_to_the_worker(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    check(options(folder), 0)
    (folder / "model.safetensors").unlink()
    check(options(folder), 0)
    (folder / "config.json").write_text("{half")
    check(options(folder), 0)
    checkpoint(folder)
    check(structs.replace(options(folder), parallel=ParallelOptions(worker="stub")), 0)
    check(options(folder, load_format="dummy"), 0)


def test_shards_are_added_up(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_bytes(ModelOptions(model=str(folder)), Config(torch_dtype="float16")) == 2 * (
        2 * MATRIX + VECTOR
    )


def test_the_bundled_model_is_counted_as_its_worker_does() -> None:
    config = memory_plan._read_config(str(BUNDLED))
    assert config is not None
    assert 10 << 20 < weights_bytes(ModelOptions(model=str(BUNDLED)), config) < 11 << 20


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ({}, 100),
        ({"dtype": "float32"}, 100),
        ({"dtype": "bfloat16"}, 200),
        ({"quantization": "int8"}, 400),
        ({"dtype": "float16", "quantization": "int4"}, 800),
    ],
)
def test_what_is_refused_before_the_download_cannot_fit(model: dict[str, Any], most: int) -> None:
    """Numbers are stored in four bytes at most, and are kept in fewer if that is asked for."""
    assert memory_plan.most_download_bytes(ModelOptions(**model), 100) == most
