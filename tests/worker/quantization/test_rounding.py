"""Weights rounded on loading: how far from the original they are, in every family and over ranks."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.families import FAMILIES
from tests.parity.reference import write_checkpoint
from tests.worker.driver import quiet, worker_config
from tests.worker.quantization.checkpoints import logprobs
from worker.kernels.matmul import dequantize_fp8, dequantize_int4, dequantize_nf4
from worker.kernels.native_matrix import FP8, INT8, TYPES
from worker.quantization.rounding import (
    INT4_GROUP,
    NF4_GROUP,
    Scheme,
    round_fp8,
    round_int4,
    round_int8,
    round_nf4,
)
from worker.runner import TorchRunner

ROUNDED = {
    "int8": lambda w: (part := round_int8(w)).weight.float() * part.scales[:, None],
    "fp8": lambda w: dequantize_fp8(round_fp8(w)),
    "int4": lambda w: dequantize_int4(round_int4(w), w.shape[1], INT4_GROUP),
    "nf4": lambda w: dequantize_nf4(round_nf4(w), w.shape[1], NF4_GROUP),
    "int4 of 128": lambda w: dequantize_int4(round_int4(w, 128), w.shape[1], 128),
}
ERRORS = {"int8": 0.009, "fp8": 0.028, "int4": 0.084, "nf4": 0.094, "int4 of 128": 0.115}
"""Root mean square, of normal weights whose own is 1; 5 % more than is measured."""


@pytest.mark.parametrize("rounded", [round_int8, round_fp8, round_int4, round_nf4])
def test_weights_are_rounded_where_they_are(rounded: Callable[[Tensor], Any]) -> None:
    """On torch's device without memory, which refuses to be mixed with another."""
    part = asdict(rounded(torch.empty(40, 96, device="meta")))
    assert {value.device.type for value in part.values() if isinstance(value, Tensor)} == {"meta"}


@pytest.mark.parametrize("scheme", ROUNDED)
def test_error_of_normal_weights(scheme: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(512, 1000)  # columns that groups do not divide
    assert float((ROUNDED[scheme](weight) - weight).square().mean().sqrt()) < ERRORS[scheme]


@pytest.mark.parametrize("scheme", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_zeros_and_outliers_stay_finite(scheme: str, dtype: torch.dtype) -> None:
    weight = torch.zeros(3, 64, dtype=dtype)
    weight[1, 5], weight[2] = 1e4, 1e-6
    found: Tensor = ROUNDED[scheme](weight)
    assert torch.equal(found[0], torch.zeros(64))
    torch.testing.assert_close(found[1], weight[1].float(), atol=0, rtol=0.01)
    torch.testing.assert_close(found[2], weight[2].float(), atol=0, rtol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_with_int8(family: str, tmp_path: Path) -> None:
    """Tiny random models: log-probabilities of about 4 move by 0.1 at most, on average. A matrix that is
    transposed, split or merged wrongly is worth more than 1."""
    model_type, changes = FAMILIES[family]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    plain, rounded = (logprobs(folder, tmp_path, quantization=q) for q in ("none", "int8"))
    assert 0 < float((plain - rounded).abs().mean()) < 0.15


def loaded(folder: Path, group_dir: Path, **options: Any) -> TorchRunner:
    return TorchRunner(worker_config(folder, group_dir, **options), quiet)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "nf4"])
def test_memory_is_what_was_promised(scheme: Scheme, tmp_path: Path) -> None:
    """And the head is rounded to 8 bits unless it is asked to stay; the fingerprint tells."""
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    runner = loaded(folder, tmp_path, quantization=scheme)
    head: Any = runner.served.model.lm_head  # type: ignore[attr-defined]
    assert head.weight.matrix.weights.kind == (FP8 if scheme == "fp8" else INT8)
    other = loaded(folder, tmp_path, quantization=scheme, quantize_head=False)
    head = other.served.model.lm_head  # type: ignore[attr-defined]
    assert head.weight.matrix.weights.kind == TYPES[torch.float32]
    plain = loaded(folder, tmp_path)
    assert len({r.model_fingerprint for r in (runner, other, plain)}) == 3
    assert runner.facts.weights_bytes < plain.facts.weights_bytes
