"""Mixtures of experts with quantized weights, as a layer and in whole models, beside the same weights
dequantized on torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.errors import StartupError
from tests.worker.kernels.triton.test_runner import Served, check, generate
from tests.worker.kernels.triton.tolerance import close
from worker import weights as worker_weights
from worker.kernels.matmul import (
    DenseMatrix,
    FP8Part,
    Int4Part,
    Int8Part,
    Matrix,
    dequantize_fp8,
    dequantize_int4,
)
from worker.kernels.matrices import TorchMatrices
from worker.kernels.triton.device import TritonKernels
from worker.layers.mlp import GatedMLP
from worker.layers.moe import SparseMLP
from worker.layers.norm import RMSNorm
from worker.parallel import Group, Span, whole
from worker.quantization import rounding
from worker.quantization.format import Format, Formats, Role
from worker.quantization.fp8 import FP8
from worker.quantization.gptq import GPTQStorage
from worker.quantization.grouped import Grouped
from worker.quantization.int8 import Int8
from worker.quantization.rounding import ROUNDED, Rounded, Rounding
from worker.quantization.unquantized import Unquantized
from worker.weights import Wants, load

SIZE, INNER, EXPERTS, TOP_K = 32, 96, 7, 3


class Dequantized(TorchMatrices):
    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        return DenseMatrix([part.weight.float() * part.scales[:, None] for part in parts], bias)

    def int4(self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        return DenseMatrix([dequantize_int4(part, columns, group) for part in parts], bias)

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        return DenseMatrix([dequantize_fp8(part) for part in parts], bias)


@pytest.fixture(autouse=True)
def only_weights_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Rounded(Int8(quantize_input=False), rounding.round_int8, ROUNDED["int8"].restore)
    monkeypatch.setitem(ROUNDED, "int8", exact)
    monkeypatch.setattr(worker_weights, "TorchMatrices", Dequantized)


def layer(
    formats: Formats, device: torch.device | None, inner: Span, rank: int = 0
) -> tuple[SparseMLP, RMSNorm, Wants]:
    """Empty."""
    wants, group = Wants(torch.float32, formats), Group()
    if device is not None:
        wants.device = TritonKernels(device)
    group.rank = rank  # of two whose sums are added below
    scope = wants.scope()
    experts = [GatedMLP(scope / str(i), SIZE, inner, Group()) for i in range(EXPERTS)]
    return (
        SparseMLP(scope, SIZE, group, experts, TOP_K, renormalize=True),
        RMSNorm(scope / "norm", SIZE, 1e-5),
        wants,
    )


@pytest.mark.parametrize("scheme", ["none", "int8", "fp8", "int4"])
def test_quantized_experts_whole_and_split(scheme: Any, device: torch.device) -> None:
    formats: Formats = Unquantized() if scheme == "none" else Rounding(scheme)
    stored: dict[str, Tensor] = {}

    def loaded(where: torch.device | None, inner: Span, rank: int = 0) -> tuple[SparseMLP, RMSNorm]:
        sparse, norm, wants = layer(formats, where, inner, rank)
        for part in wants.parts():
            stored.setdefault(part.name, torch.randn(part.shape) / 4)
        load(wants, lambda part: part.cut(stored[part.name]), lambda *_: None)
        norm.weight = norm.weight.to(where or "cpu")
        if where is not None:
            assert wants.device is not None
            norm.fused = wants.device.norm(norm.weight, None, norm.eps)
        return sparse, norm

    torchs, ours = loaded(None, whole(INNER)), loaded(device, whole(INNER))
    parts = [(Span(INNER, 48 * rank, 48), rank) for rank in range(2)]
    halves = [loaded(device, *part) for part in parts]
    torchs_halves = [loaded(None, *part) for part in parts]  # each rounds what it holds
    for count in (1, 5):
        x, residual = torch.randn(count, SIZE), torch.randn(count, SIZE)
        there = x.to(device), residual.to(device)
        close(ours[0](*there, ours[1]).cpu(), torchs[0](x, residual, torchs[1]))
        found = halves[0][0](*there, halves[0][1]) + halves[1][0](*there, halves[1][1])
        right = sum((half(x, torch.zeros_like(x), norm) for half, norm in torchs_halves), residual)
        close(found.cpu(), right)
    assert not ours[0].experts, "they are on the device once"


def test_the_same_answers_as_on_torch(tmp_path: Path, device: torch.device) -> None:
    served = Served(tmp_path, "mixtral", device, quantization="fp8")
    torchs = Served(tmp_path, "mixtral", None, quantization="fp8", cpu_kernels="torch")
    check(generate(served.driver), generate(torchs.driver))
    assert served.replays() >= 4, "decodes were replayed"


@dataclass(frozen=True)
class Stored:
    """Formats"""

    first: Format[Any]
    others: Format[Any]
    name: str = "test"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        return Unquantized() if role == "router" else self.first if module.startswith("0.") else self.others


GPTQ = dict[str, Any](group=32, has_zeros=False, v2=False)
EIGHT = Grouped(GPTQStorage(bits=8, desc_act=False, has_g_idx=False, **GPTQ))
SCATTERED = Grouped(GPTQStorage(bits=4, desc_act=True, has_g_idx=True, **GPTQ))
BLOCKS = FP8("weight_scale_inv", (128, 128))


@pytest.mark.parametrize(
    ("first", "others", "inner", "named"),
    [
        (
            Unquantized(),
            Int8(quantize_input=False),
            whole(INNER),
            r"\(test\) whose weights are not all stored",
        ),
        (EIGHT, EIGHT, whole(INNER), r"groups of 8-bit weights"),
        (SCATTERED, SCATTERED, whole(INNER), r"scattered columns"),
        (BLOCKS, BLOCKS, whole(192), r"192 rows of an expert do not end with a block of 128"),
        (BLOCKS, BLOCKS, Span(384, 192, 192), r"scales of 64 × 128 have no kernel"),
    ],
)
def test_what_cannot_be_stacked_is_refused_before_it_is_read(
    first: Format[Any], others: Format[Any], inner: Span, named: str, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{__name__}.SIZE", 256)
    with pytest.raises(StartupError, match=named):
        layer(Stored(first, others), device, inner)
