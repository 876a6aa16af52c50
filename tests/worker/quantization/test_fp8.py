"""Block FP8 as DeepSeek and Qwen publish it, FP8 per tensor as AutoFP8 did, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.worker.quantization.checkpoints import Quantize, mean_difference, no_cache, write_twins
from worker.kernels.matmul import dequantize_fp8
from worker.parallel import Span, whole
from worker.quantization.choice import formats_for
from worker.quantization.format import Cut
from worker.quantization.fp8 import FP8

BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def in_blocks(block: int) -> Quantize:
    """weight = float8 · weight_scale_inv of its block; the last blocks may be incomplete."""

    def quantize(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if module.endswith("gate"):
            return None
        n, k = weight.shape
        padded = F.pad(weight, (0, -k % block, 0, -n % block))
        blocks = padded.view(padded.shape[0] // block, block, -1, block)
        scale = blocks.abs().amax((1, 3)) / 448
        spread = scale.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :k]
        codes = (weight / spread).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale_inv": scale}, codes.float() * spread

    return quantize


def per_tensor(_module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    stored = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
    return stored, codes.float() * scale


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen3", {"hidden_size": 160, "intermediate_size": 288, "head_dim": 48}),
        (
            "qwen3_moe",
            {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
        ),
    ],
)
def test_blocks_are_equal_to_the_dequantized_model(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Activations are as they are: only the order of sums differs. Sizes that blocks do not divide."""
    twins = write_twins(tmp_path, in_blocks(128), BLOCKS, model_type, **changes)
    assert mean_difference(twins, tmp_path) < 1e-5


def inverse(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """As Mistral names them, with calibrated scales for a cache beside."""
    stored, meant = per_tensor(module, weight)
    names = {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}
    named = {names.get(name, name): tensor for name, tensor in stored.items()}
    cache = {"k_scale": torch.tensor(0.1)} if module.endswith("k_proj") else {}
    return {**named, **cache}, meant


def per_row(_module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


STATIC = {"quant_method": "fp8", "activation_scheme": "static"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}


@pytest.mark.parametrize(
    ("quantize", "config"),
    [
        (per_tensor, STATIC),
        (inverse, {**STATIC, "weight_block_size": None, "kv_cache_scheme": "static"}),
        (per_tensor, {**MODELOPT, "ignore": ["lm_head"], "producer": {"name": "modelopt"}}),
        (per_row, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    ],
)
def test_scales_of_tensors_and_rows_are_equal_to_the_dequantized_model(
    quantize: Quantize, config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mean_difference(write_twins(tmp_path, quantize, config), tmp_path) < 1e-5
    assert ("8-bit KV cache are not used" in capsys.readouterr().err) == ("kv_cache_scheme" in config)


def test_a_split_through_blocks_makes_smaller_ones() -> None:
    torch.manual_seed(2)
    found = in_blocks(128)("m", torch.randn(320, 256))
    assert found is not None
    stored, meant = found
    cut, form = Cut("m", Span(320, 160, 160), Span(256, 64, 128)), FP8("weight_scale_inv", (128, 128))
    given = [part.cut(stored[part.name.removeprefix("m.")]) for part in form.parts(cut)]
    ours = dequantize_fp8(form.load(cut, given, torch.float32))
    torch.testing.assert_close(ours, meant[160:, 64:192], atol=0, rtol=0)
    with pytest.raises(StartupError, match=r"cuts 'm' at column 8, which leaves 8 columns of .* 128"):
        form.parts(Cut("m", whole(320), Span(256, 8, 128)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fmt": "e5m2"}, "fmt = 'e5m2' are not supported; it must be 'e4m3'"),
        ({"scale_fmt": "ue8m0"}, "scale_fmt = 'ue8m0'"),
        ({"expert_dtype": "fp4"}, "expert_dtype = 'fp4'"),
        ({"weight_block_size": [1, 16]}, r"FP8 blocks of \[1, 16\]"),
        ({"weight_block_size": [128, 50]}, r"FP8 blocks of \[128, 50\] .* columns a multiple of 4"),
        ({"weight_block_size": "all"}, r"quantization_config \(fp8\): Expected `array"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        formats_for({**BLOCKS, **changes}, {}, ModelOptions(), no_cache)
