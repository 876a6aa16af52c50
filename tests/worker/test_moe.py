"""A mixture of experts against the same written out token by token."""

import pytest
import torch
from torch import Tensor

from worker.layers.mlp import GatedMLP
from worker.layers.moe import SparseMLP
from worker.parallel import Group, whole
from worker.weights import Wants, load

SIZE, INNER, EXPERTS = 12, 10, 7


def loaded(top_k: int, *, renormalize: bool) -> tuple[SparseMLP, dict[str, Tensor]]:
    """With its checkpoint's tensors."""
    torch.manual_seed(3)
    wants, group = Wants(torch.float32), Group()
    scope = wants.scope()
    experts = [GatedMLP(scope / str(i), SIZE, whole(INNER), group) for i in range(EXPERTS)]
    layer = SparseMLP(scope, SIZE, group, experts, top_k, renormalize=renormalize)
    stored = {part.name: torch.randn(part.shape) for part in wants.parts()}
    load(wants, lambda part: part.cut(stored[part.name]), lambda *_: None)
    return layer, stored


def one(stored: dict[str, Tensor], x: Tensor, top_k: int, *, renormalize: bool) -> Tensor:
    p = (stored["gate.weight"] @ x).softmax(0)
    chosen = sorted(range(EXPERTS), key=lambda i: -float(p[i]))[:top_k]
    total = sum(float(p[i]) for i in chosen) if renormalize else 1.0
    out = torch.zeros(SIZE)
    for i in chosen:
        gate, up, down = (stored[f"{i}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        out += float(p[i]) / total * (down @ (torch.nn.functional.silu(gate @ x) * (up @ x)))
    return out


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, EXPERTS])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_equal_to_token_by_token(count: int, top_k: int, renormalize: bool) -> None:
    layer, stored = loaded(top_k, renormalize=renormalize)
    x, residual = torch.randn(count, SIZE), torch.randn(count, SIZE)
    expected = torch.stack([one(stored, row, top_k, renormalize=renormalize) for row in x]) + residual
    torch.testing.assert_close(layer(x, residual), expected, atol=1e-4, rtol=1e-4)


def test_a_token_that_is_not_a_number_stays_alone() -> None:
    layer, _ = loaded(2, renormalize=True)
    x, residual = torch.randn(5, SIZE), torch.zeros(5, SIZE)
    expected = layer(x, residual)
    x[2] = torch.nan
    found = layer(x, residual)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[others], expected[others])
    assert found[2].isnan().all()
