"""What can be known of a model's memory before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from protocol.errors import OutOfMemory, StartupError
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, ServeOptions
from scripts import memory_plan
from scripts.memory_plan import check
from tests.scripts.sized_checkpoint import KV_PER_TOKEN, MATRIX, VECTOR, checkpoint
from tests.worker.adapters import write_adapter


def options(folder: Path, **model: Any) -> ServeOptions:
    return ServeOptions(model=ModelOptions(model=str(folder), **model))


def test_weights_that_do_not_fit_are_refused_with_numbers_and_the_remedy(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    needed = 2 * (MATRIX + VECTOR)
    check(options(folder), needed)
    with pytest.raises(OutOfMemory, match=r"at least 125 KiB, but 125 KiB of memory are available") as caught:
        check(options(folder), needed - 1)
    assert "--quantization int4" in caught.value.hint
    check(options(folder, quantization="int8"), needed - 1)


def test_adapters_are_counted_with_the_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    adapter = write_adapter(tmp_path / "a", {"model.layers.0.mlp.up_proj": (1000, 64)}, r=4)
    needed = 2 * (MATRIX + VECTOR + 4 * 1064)
    check(options(folder, lora=(f"a={adapter}",)), needed)
    with pytest.raises(OutOfMemory, match="the weights take at least"):
        check(options(folder, lora=(f"a={adapter}",)), needed - 1)


def test_the_machine_s_memory_says_nothing_of_a_gpu_s(tmp_path: Path) -> None:
    given = options(checkpoint(tmp_path / "m"))
    check(structs.replace(given, parallel=ParallelOptions(device="cuda")), 1)
    with pytest.raises(OutOfMemory):
        check(structs.replace(given, parallel=ParallelOptions(device="cpu")), 1)


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
    check(structs.replace(longer, cache=structs.replace(longer.cache, kv_cache_dtype="int8")), 1 << 30)
    free = options(folder, max_model_len=1 << 20)
    with pytest.raises(OutOfMemory, match=r"but of 99\.\d MiB beside the weights, 25\.0 MiB are set aside"):
        check(free, 100 << 20)
    check(options(folder), 1 << 20)


def test_a_context_beyond_the_model_s_positions_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", max_position_embeddings=128)
    check(options(folder, max_model_len=128), 1 << 30)
    with pytest.raises(StartupError, match="--max-model-len 129 is longer than the model's 128 positions"):
        check(options(folder, max_model_len=129), 1 << 30)


def test_memory_for_less_than_a_block_is_refused(tmp_path: Path) -> None:
    given = structs.replace(
        options(checkpoint(tmp_path / "m")), cache=CacheOptions(kv_cache_memory=1024, block_size=32)
    )
    with pytest.raises(OutOfMemory, match=r"--kv-cache-memory 1\.0 KiB: not one block fits") as caught:
        check(given, 1 << 30)
    assert f"{32 * KV_PER_TOKEN} bytes or more" in caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 8},
        {"layer_types": ["full_attention"]},
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


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ({}, 100),
        ({"dtype": "float32"}, 100),
        ({"dtype": "bfloat16"}, 200),
        ({"quantization": "int8"}, 400),
        ({"dtype": "float16", "quantization": "int4"}, 711),
        ({"dtype": "float16", "quantization": "int4", "quantization_group": 128}, 775),
    ],
)
def test_what_is_refused_before_the_download_cannot_fit(model: dict[str, Any], most: int) -> None:
    """Numbers are stored in four bytes at most, and are kept in fewer if that is asked for."""
    assert memory_plan.most_download_bytes(ModelOptions(**model), 100) == most
