from functools import partial

import pytest
import torch
from torch import Tensor

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import experts, gemv, int4_gemv, int4_matmul
from worker.kernels.triton.experts import ExpertWeights
from worker.kernels.triton.gemv import RowNorm
from worker.kernels.triton.routing import sort

EXPERTS, N, K = 5, 70, 80
KINDS = ["dense", "int8", "fp8", "fp8 blocks", "int4", "int4 with zeros"]


def weights_of(kind: str, device: torch.device, dtype: torch.dtype, n: int = N, k: int = K) -> ExpertWeights:
    """Numbers of about 1, all different experts."""
    if "fp8" in kind and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    per_row = (torch.rand(EXPERTS, n) * 0.02).to(device)
    match kind:
        case "dense":
            return ExpertWeights(torch.randn(EXPERTS, n, k).to(device, dtype))
        case "int8":
            return ExpertWeights(torch.randint(-127, 128, (EXPERTS, n, k)).to(device, torch.int8), per_row)
        case "fp8" | "fp8 blocks":
            stored = (torch.randn(EXPERTS, n, k) * 60).to(torch.float8_e4m3fn).to(device)
            blocks = (torch.rand(EXPERTS, -(-n // 128), -(-k // 128)) * 0.02).to(device)
            return ExpertWeights(stored, blocks if kind == "fp8 blocks" else per_row)
    codes = torch.randint(0, 16, (EXPERTS, n, k), dtype=torch.uint8)
    packed = torch.stack([int4_matmul.pack(one) for one in codes]).to(device)
    groups = (torch.rand(EXPERTS, n, -(-k // 32)) * 0.2).to(device)
    zeros = torch.randint(0, 16, groups.shape).float().to(device) if kind == "int4 with zeros" else None
    return ExpertWeights(packed, groups, zeros, 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 2), (3, 1), (24, 2)])
def test_each_token_gets_its_experts(
    tokens: int, top_k: int, kind: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Some experts get nothing, and one may get all; columns and K end within a tile."""
    x = torch.randn(tokens, K).to(device, dtype)
    chosen = torch.stack([torch.randperm(3)[:top_k] for _ in range(tokens)]).int().to(device)
    weight, order = weights_of(kind, device, dtype), sort(chosen, EXPERTS)
    found = experts.expert_matmul(x, weight, order, top_k)
    expected = experts.expert_matmul_reference(x, weight, chosen)
    close(found, expected, 2)
    if tokens == 3:
        invariant = experts.expert_matmul(x, weight, order, top_k, invariant=True)
        close(invariant, expected, 2)
    weights = torch.rand(tokens, top_k, device=device)
    add = torch.randn(tokens, N).to(device, dtype)
    close(experts.combine(found, weights, add), experts.combine_reference(found, weights, add))


def test_what_each_expert_made_is_multiplied_by_its_own(device: torch.device) -> None:
    chosen = torch.tensor([[4, 0], [0, 1], [4, 3]], dtype=torch.int32, device=device)
    weight, made = weights_of("int8", device, torch.float32), torch.randn(6, K, device=device)
    found = experts.expert_matmul(made, weight, sort(chosen, EXPERTS), 2)
    close(found, experts.expert_matmul_reference(made, weight, chosen))


def test_blocks_of_scales_change_along_k_and_columns(device: torch.device, dtype: torch.dtype) -> None:
    weight, chosen = (
        weights_of("fp8 blocks", device, dtype, 200, 300),
        torch.tensor([[2], [0]], device=device),
    )
    x = torch.randn(2, 300).to(device, dtype)
    found = experts.expert_matmul(x, weight, sort(chosen.int(), EXPERTS), 1)
    close(found, experts.expert_matmul_reference(x, weight, chosen), 2)
    alone = gemv.gemv(x, weight.stored, w_scales=weight.scales, chosen=chosen.int())
    close(alone, experts.expert_matmul_reference(x, weight, chosen), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_by_each_of_its_experts(kind: str, device: torch.device) -> None:
    """With the norm and the activation in one launch; then what each made."""
    dtype = torch.float32
    rows = 256 if kind == "fp8 blocks" else N
    weight, x = weights_of(kind, device, dtype, rows), torch.randn(1, K, device=device)
    chosen = torch.tensor([[3, 0, 4]], dtype=torch.int32, device=device)
    norm = RowNorm(torch.randn(K, device=device), 1e-5)
    product = partial(_alone, weight, chosen)
    picked = [weight.one(expert) for expert in chosen[0].tolist()]
    found = product(x, norm=norm, gated=True)
    right = [
        gemv.around(x, partial(experts.product_reference, one=one), norm, gated=True, gelu=False)
        for one in picked
    ]
    close(found, torch.cat(right))
    made = torch.randn(3, K, device=device)
    right = [experts.product_reference(row[None], one) for row, one in zip(made, picked, strict=True)]
    close(product(made), torch.cat(right))


def _alone(
    weight: ExpertWeights, chosen: Tensor, x: Tensor, norm: RowNorm | None = None, gated: bool = False
) -> Tensor:
    if weight.group and weight.scales is not None:
        four = weight.stored, weight.scales, weight.zeros, weight.group
        return int4_gemv.int4_gemv(x, *four, norm=norm, gated=gated, chosen=chosen)
    return gemv.gemv(x, weight.stored, w_scales=weight.scales, norm=norm, gated=gated, chosen=chosen)
