"""Both forms of a weight multiply alike, and ranks get their parts."""

import pytest
import torch
from torch import Tensor

from protocol.errors import StartupError
from tests.worker.driver import quiet
from worker.kernels import packed_matrix
from worker.kernels.packed_matrix import PackedMatrix
from worker.layers.linear import Weight
from worker.parallel import Group, Span, whole
from worker.weights import Wants, load, random_part


def linear(dtype: torch.dtype, *, bias: bool) -> tuple[Weight, Tensor, Tensor]:
    """(the layer's, its whole weight, its whole bias)"""
    wants = Wants(dtype)
    rows = [(wants.scope() / "a", [whole(24)]), (wants.scope() / "b", [whole(8)])]
    weight = Weight(rows, whole(40), bias=bias)
    stored = {part.name: torch.randn(part.shape).to(dtype) for part in wants.parts()}
    load(wants, lambda part: part.cut(stored[part.name]), quiet)
    zeros = torch.zeros(24, dtype=dtype), torch.zeros(8, dtype=dtype)
    biases = (stored["a.bias"], stored["b.bias"]) if bias else zeros
    return weight, torch.cat((stored["a.weight"], stored["b.weight"])), torch.cat(biases)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_rows_are_multiplied_alike_in_every_form(
    dtype: torch.dtype, bias: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_matrix, "SMALL_BYTES", 1 << 20 if small else 0)
    layer, weight, offset = linear(dtype, bias=bias)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3  # sums of 40 products of about 1
    for count in (1, 3, 4, 9, 64):
        x, add = torch.randn(count, 40).to(dtype), torch.randn(count, 32).to(dtype)
        expected = x.float() @ weight.float().t() + offset.float()
        assert (layer.multiply(x).float() - expected).abs().max() < tolerance
        assert (layer.multiply(x, add).float() - expected - add.float()).abs().max() < tolerance


def test_a_large_weight_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_matrix, "SMALL_BYTES", 0)
    matrix = PackedMatrix(torch.randn(8, 40), None)
    assert (matrix.plain is None) == (matrix.packed is not None)


def group(rank: int, size: int) -> Group:
    """A rank that never meets the others."""
    found = Group()
    found.rank, found.size = rank, size
    return found


def test_spans() -> None:
    assert group(1, 2).span(6, "x") == Span(6, 3, 3)
    assert group(1, 2).span(6, "x").times(10) == Span(60, 30, 30)
    assert [group(rank, 4).shared_span(2, "x").start for rank in range(4)] == [0, 0, 1, 1]
    assert group(1, 2).shared_span(2, "x") == Span(2, 1, 1)
    with pytest.raises(StartupError, match=r"x is 6, which --tensor-parallel-size 4 does not divide"):
        group(0, 4).span(6, "x")
    with pytest.raises(StartupError, match=r"x is 2, which --tensor-parallel-size 3"):
        group(0, 3).shared_span(2, "x")


def test_random_weights_are_parts_of_one_whole() -> None:
    """Each rank of a dummy model gets its part of the same matrix."""
    parts: list[Tensor] = []
    for span in (Span(8, 0, 8), Span(8, 0, 4), Span(8, 4, 4)):
        wants = Wants(torch.float32)
        Weight([(wants.scope() / "a", [span])], whole(6))
        parts.extend(random_part(part) for part in wants.parts())
    torch.testing.assert_close(parts[0], torch.cat(parts[1:]), atol=0, rtol=0)
