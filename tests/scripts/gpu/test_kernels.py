"""The kernels' benchmarks at their real sizes: on tensors without memory, with launches recorded.
That they run, and what they count, is tested beside the kernels, where Triton interprets."""

import pytest
import torch

from scripts.gpu import kernels, tune
from scripts.gpu.compile import record
from scripts.gpu.floors import Ceilings
from scripts.gpu.results import Measurement
from worker.kernels.triton import tuning

META = torch.device("meta")
H100 = Ceilings(3e12, {"bf16": 7e14})


def test_every_kernel_that_decides_a_step_is_timed() -> None:
    found: list[Measurement] = []
    launches = record(lambda: found.extend(kernels.measure(META, torch.bfloat16, H100)))
    assert {launch.name for launch in launches} == {
        "activation.activate",
        "decode_attention.attend",
        "decode_attention.plan",
        "gemv.gemv",
        "int4_gemv.int4_gemv",
        "int4_matmul.int4_matmul",
        "matmul.matmul",
        "norm.norm",
        "prefill_attention.prefill",
        "sampling.edit",
        "sampling.sample",
    }
    assert len({m.name for m in found}) == len(found)
    gemv = next(m for m in found if m.name.startswith("gemv bf16"))
    assert gemv.limit == pytest.approx(28672 * 4096 * 2 / 3e12 * 1e6)
    prompt = next(m for m in found if m.name == "matmul bf16 2048 × [28672, 4096]")
    assert prompt.limit == pytest.approx(2 * 2048 * 28672 * 4096 / 7e14 * 1e6)


def test_every_way_of_tiling_launches_what_is_tried() -> None:
    kinds = {product.kind: product for product in tune.products(META)}
    assert list(kinds) == list(tune.KINDS)
    for product in kinds.values():
        tiles = list(tune.candidates(product))
        launches = record(lambda product=product: tune.fastest(META, torch.bfloat16, product))  # type: ignore[misc]
        tried = {
            (launch.constants["TILE_M"], launch.constants["TILE_N"], launch.options["num_warps"])
            for launch in launches
            if "TILE_M" in launch.constants
        }
        assert {(one.m, one.n, one.num_warps) for one in tiles} <= tried
        assert product.rows in (16, 64, tuning.MANY)
