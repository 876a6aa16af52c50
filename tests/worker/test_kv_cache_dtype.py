"""What --kv-cache-dtype makes of a runner's memory, and what it is refused for. What it computes is in
test_attention.py, test_native_attention.py, test_invariance.py and kernels/triton/test_runner.py."""

from pathlib import Path

import pytest
import torch

from protocol.errors import StartupError
from tests.worker.driver import quiet, worker_config, write_config
from tests.worker.native import kernels
from worker.kernels.attention import KVShape
from worker.kernels.paged_kv import dtype_of
from worker.kv_cache import KVCache, stored_dtype
from worker.kv_layout import lay_out
from worker.runner import TorchRunner


@pytest.mark.parametrize("wanted", ["auto", "int8", "fp8"])
def test_blocks_take_the_memory_that_is_counted(wanted: str, tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", dtype="bfloat16", head_dim=64)
    config = worker_config(
        model,
        tmp_path,
        load_format="dummy",
        num_kv_blocks=0,
        kv_cache_memory=1 << 17,
        kv_cache_dtype=wanted,
        cpu_kernels="torch",
    )
    runner = TorchRunner(config, quiet)
    vector = 64 * 2 if wanted == "auto" else 64 + 4
    block = 2 * 2 * 4 * 2 * vector  # layers, keys and values, tokens, heads
    assert runner.facts.num_blocks == (1 << 17) // block
    cache = runner.served.cache
    held = cache.tensor.nbytes + (0 if cache.scales is None else cache.scales.nbytes)
    assert held == (runner.facts.num_blocks + 1) * block, "and the null block"
    assert runner.facts.kv_bytes == runner.facts.num_blocks * block


def test_another_cache_is_another_model(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model")
    prints = [
        TorchRunner(
            worker_config(model, tmp_path, load_format="dummy", kv_cache_dtype=wanted), quiet
        ).model_fingerprint
        for wanted in ("auto", "int8")
    ]
    assert prints[0] != prints[1]


def test_what_has_no_kernel_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model")
    with pytest.raises(StartupError, match="--kv-cache-dtype fp8: the kernels in C have int8") as caught:
        TorchRunner(worker_config(model, tmp_path, load_format="dummy", kv_cache_dtype="fp8"), quiet)
    assert "--kv-cache-dtype int8" in caught.value.hint
    with pytest.raises(StartupError, match="heads of up to 256 numbers; this model's have 512"):
        stored_dtype("int8", torch.bfloat16, 512, kernels(), None)
    assert stored_dtype("auto", torch.bfloat16, 512, kernels(), None) == torch.bfloat16
    assert stored_dtype("fp8", torch.bfloat16, 64, None, None) == torch.float8_e4m3fn


@pytest.mark.parametrize("wanted", ["auto", "int8", "fp8"])
def test_what_a_block_held_is_blanked_or_spoiled(wanted: str) -> None:
    cache = KVCache(lay_out([None, None]), KVShape(3, 2, 4, 8), dtype_of(wanted, torch.float32))
    cache.spoil([0, 2])
    rows = torch.arange(4 * 2 * 2)
    sick = cache.layers[1].gather(rows).isnan().flatten(1).any(1).view(2, 4, 2)
    assert sick[:, [0, 2]].all()
    cache.blank(torch.tensor([0, 1, 2], dtype=torch.int32).numpy())
    assert not cache.layers[1].gather(rows).any()
