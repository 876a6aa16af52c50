"""GPTQ and AWQ matrices, packed and unpacked by GPTQModel (make_fixtures.py), through our formats."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.worker.quantization.make_fixtures import FIXTURES
from worker.kernels.matmul import dequantize_int4
from worker.parallel import Span, whole
from worker.quantization.awq import AWQStorage
from worker.quantization.format import Cut
from worker.quantization.gptq import GPTQStorage
from worker.quantization.grouped import Grouped, GroupedPart, Storage


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


def load(storage: Storage, cut: Cut, tensors: dict[str, Tensor]) -> GroupedPart:
    """As the loader does, which has compared the shapes."""
    parts = storage.parts(cut)
    for part in parts:
        assert tensors[part.name.removeprefix("m.")].shape == part.shape
    given = [part.cut(tensors[part.name.removeprefix("m.")]) for part in parts]
    return Grouped(storage).load(cut, given, torch.float32)


def dequantized(part: GroupedPart, columns: int, group: int) -> Tensor:
    weight = sum((dequantize_int4(p, columns, group) for p in part.nibbles), torch.zeros(()))
    return weight if part.order is None else weight[:, part.order.argsort()]


@pytest.mark.parametrize("case", STORAGES)
def test_equal_to_the_reference(case: str) -> None:
    """To the rounding of (code - zero) · scale: GPTQModel computes it in float16."""
    tensors, storage = stored(case), STORAGES[case]
    expected = tensors.pop("expected")
    n, k = expected.shape
    part = load(storage, Cut("m", whole(n), whole(k)), tensors)
    assert storage.group is not None
    ours = dequantized(part, k, storage.group)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("case", [case for case in STORAGES if "desc_act" not in case])
def test_a_rank_reads_its_rows_and_columns(case: str) -> None:
    tensors, storage = stored(case), STORAGES[case]
    expected = tensors.pop("expected")
    n, k = expected.shape
    part = load(storage, Cut("m", Span(n, 8, 8), Span(k, 64, 64)), tensors)
    assert storage.group is not None
    ours = dequantized(part, 64, storage.group)
    torch.testing.assert_close(ours, expected[8:, 64:], atol=2e-3, rtol=2e-3)
