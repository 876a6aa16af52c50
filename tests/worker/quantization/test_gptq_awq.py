"""GPTQ and AWQ matrices, packed and unpacked by GPTQModel (make_fixtures.py), through our formats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from protocol.errors import StartupError
from tests.worker.quantization.checkpoints import (
    Quantize,
    dequantized,
    load_grouped,
    mean_difference,
    pack,
    write_twins,
)
from tests.worker.quantization.make_fixtures import FIXTURES
from worker.parallel import Span, whole
from worker.quantization.awq import FIELDS, AWQStorage
from worker.quantization.format import Cut
from worker.quantization.gptq import GPTQStorage
from worker.quantization.grouped import Storage


def gptq(bits: int, group: int, **changes: bool) -> GPTQStorage:
    settings: dict[str, Any] = {
        "has_zeros": False,
        "v2": False,
        "desc_act": False,
        "has_g_idx": True,
        **changes,
    }
    return GPTQStorage(bits=bits, group=group, **settings)


STORAGES: dict[str, Storage] = {
    "gptq, 4 bits": gptq(4, 32),
    "gptq, 4 bits, asymmetric, desc_act": gptq(4, 32, has_zeros=True, desc_act=True),
    "gptq_v2, 4 bits, asymmetric": gptq(4, 64, has_zeros=True, v2=True),
    "gptq, 8 bits": gptq(8, 64),
    "gptq, 8 bits, asymmetric, desc_act": gptq(8, 32, has_zeros=True, desc_act=True),
    "awq": AWQStorage(32),
}


def stored(case: str) -> dict[str, Tensor]:
    found = load_file(FIXTURES)
    return {name.removeprefix(f"{case}/"): t for name, t in found.items() if name.startswith(f"{case}/")}


@pytest.mark.parametrize("case", STORAGES)
def test_equal_to_the_reference(case: str) -> None:
    """To the rounding of (code - zero) · scale: GPTQModel computes it in float16."""
    tensors, storage = stored(case), STORAGES[case]
    expected = tensors.pop("expected")
    cut = Cut("m", whole(len(expected)), whole(expected.shape[1]))
    ours = dequantized(load_grouped(storage, cut, tensors), cut, storage)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("case", [case for case in STORAGES if "desc_act" not in case])
def test_a_rank_reads_its_rows_and_columns(case: str) -> None:
    tensors, storage = stored(case), STORAGES[case]
    expected = tensors.pop("expected")
    cut = Cut("m", Span(len(expected), 8, 8), Span(expected.shape[1], 64, 64))
    ours = dequantized(load_grouped(storage, cut, tensors), cut, storage)
    torch.testing.assert_close(ours, expected[8:, 64:], atol=2e-3, rtol=2e-3)


def test_scattered_groups_are_not_split() -> None:
    storage = STORAGES["gptq, 4 bits, asymmetric, desc_act"]
    with pytest.raises(StartupError, match=r"'m' is a matrix whose groups are of scattered columns"):
        storage.parts(Cut("m", whole(16), Span(128, 64, 64)))


def test_groups_are_not_split() -> None:
    with pytest.raises(StartupError, match="cuts 'm' at 48 and 96, in the middle of groups of 32"):
        STORAGES["awq"].parts(Cut("m", whole(16), Span(96, 48, 48)))


def test_groups_of_unequal_size_are_damage() -> None:
    tensors, storage = stored("gptq, 4 bits"), STORAGES["gptq, 4 bits"]
    tensors["g_idx"][0] = 1
    with pytest.raises(StartupError, match=r"'m.g_idx' does not put 32 columns into each group"):
        load_grouped(storage, Cut("m", whole(16), whole(128)), tensors)


def served(case: str) -> tuple[Quantize, dict[str, Any]]:
    """A quantizer of whole checkpoints in the way of the fixture `case`, and its quantization_config."""
    storage = STORAGES[case]
    bits, group = storage.bits, storage.group or 0

    def quantize(_module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        groups = weight.reshape(len(weight), -1, group)
        low, most = groups.amin(2), (1 << bits) - 1
        scales = (groups.amax(2) - low) / most
        zeros = (-low / scales).round().clamp(1, most)
        spread = torch.arange(weight.shape[1]) // group
        codes = (weight / scales[:, spread] + zeros[:, spread]).round().clamp(0, most)
        meant = (codes - zeros[:, spread]) * scales[:, spread]
        integers, points = codes.to(torch.uint8), zeros.to(torch.uint8)
        if case == "awq":
            words = {"qweight": pack(integers.t(), 4, FIELDS), "qzeros": pack(points.t(), 4, FIELDS)}
        else:
            words = {"qweight": pack(integers, bits).t(), "qzeros": pack((points - 1).t(), bits)}
            words["g_idx"] = spread.int()
            words["bias"] = torch.zeros(len(weight))  # as AutoGPTQ does where there is none
        return {**words, "scales": scales.t()}, meant

    method = {"quant_method": case} if case == "awq" else {"quant_method": "gptq", "desc_act": False}
    return quantize, {**method, "bits": bits, "group_size": group, "version": "gemm"}


@pytest.mark.parametrize(
    ("case", "model_type"), [("gptq, 8 bits", "phi3"), ("awq", "qwen2"), ("awq", "mixtral")]
)
def test_equal_to_the_dequantized_model(case: str, model_type: str, tmp_path: Path) -> None:
    """8-bit activations, as in test_compressed_tensors. Fused matrices, biases, experts, a float router."""
    quantize, config = served(case)
    changes = {"num_local_experts": 3} if model_type == "mixtral" else {}

    def but_the_router(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        return None if module.endswith("gate") else quantize(module, weight)

    twins = write_twins(tmp_path, but_the_router, config, model_type, intermediate_size=128, **changes)
    assert mean_difference(twins, tmp_path) < 0.06
