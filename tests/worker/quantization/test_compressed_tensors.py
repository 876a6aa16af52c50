"""Checkpoints packed by the compressed-tensors package mean to us what they mean to it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.worker.quantization.checkpoints import (
    dequantized,
    load_grouped,
    mean_difference,
    no_cache,
    pack,
    write_twins,
)
from worker.parallel import whole
from worker.quantization.choice import formats_for
from worker.quantization.compressed_tensors import PackedStorage
from worker.quantization.format import Cut
from worker.quantization.packing import unpack
from worker.quantization.unquantized import Unquantized

DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_DYNAMIC = {**DYNAMIC, "type": "float"}
STATIC = {**DYNAMIC, "strategy": "tensor", "dynamic": False}


def args(num_bits: int, strategy: str, **changes: Any) -> dict[str, Any]:
    return {"num_bits": num_bits, "type": "int", "symmetric": True, "strategy": strategy, **changes}


SCHEMES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "W8A8": ("int-quantized", args(8, "channel"), DYNAMIC),
    "W8A8 per tensor": ("int-quantized", args(8, "tensor"), DYNAMIC),
    "W8A16": ("pack-quantized", args(8, "channel"), None),
    "W8A16, naive": ("naive-quantized", args(8, "channel"), None),
    "W8A16, groups, asymmetric": ("pack-quantized", args(8, "group", group_size=32, symmetric=False), None),
    "W4A16": ("pack-quantized", args(4, "group", group_size=32), None),
    "W4A16, asymmetric": ("pack-quantized", args(4, "group", group_size=32, symmetric=False), None),
    "W4A16, rows": ("pack-quantized", args(4, "channel"), None),
    "FP8 per tensor": ("float-quantized", args(8, "tensor", type="float"), None),
    "FP8 per channel": ("float-quantized", args(8, "channel", type="float"), FP8_DYNAMIC),
    "FP8 blocks": ("naive-quantized", args(8, "block", type="float", block_structure=[32, 32]), FP8_DYNAMIC),
}


def quantizer(
    form: str, weights: dict[str, Any]
) -> Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]:
    """With scales from the largest and smallest weights, packed and unpacked by the package."""
    parsed = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=parsed)
    compressor = BaseCompressor.get_value_from_registry(form)

    def quantize(_module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if parsed.strategy == "tensor":
            low, high = weight.min().view(1), weight.max().view(1)
        elif parsed.strategy == "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        elif parsed.strategy == "group":
            groups = weight.view(len(weight), -1, parsed.group_size)
            low, high = groups.amin(2), groups.amax(2)
        else:
            blocks = weight.view(len(weight) // 32, 32, -1, 32)
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        scale, zero = calculate_qparams(low, high, parsed)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        stored = compressor.compress(state, scheme)
        return dict(stored), compressor.decompress(stored, scheme)["weight"]

    return quantize


def config(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **more,
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_to_the_dequantized_model(name: str, tmp_path: Path) -> None:
    """Float32 log-probabilities of about 4. Where activations are as they are, only the order of sums
    differs; 8-bit activations (W8A8, and all of our integer groups) move them by about 0.03. A wrong scale,
    zero point or order of codes is worth 0.5 and more."""
    form, weights, inputs = SCHEMES[name]
    twins = write_twins(tmp_path, quantizer(form, weights), config(form, weights, inputs))
    as_they_are = "FP8" in name or name in ("W8A16", "W8A16, naive")
    assert mean_difference(twins, tmp_path) < (1e-5 if as_they_are else 0.05)


@pytest.mark.parametrize("name", [name for name, (form, _, _) in SCHEMES.items() if form == "pack-quantized"])
def test_packed_codes_are_equal_to_the_reference(name: str) -> None:
    """Weights that are not square; exact but for the order of one multiplication."""
    _, weights, _ = SCHEMES[name]
    torch.manual_seed(5)
    tensors, expected = quantizer("pack-quantized", weights)("m", torch.randn(48, 96))
    group = weights.get("group_size")
    storage = PackedStorage(weights["num_bits"], group, not weights["symmetric"], has_g_idx=False)
    cut = Cut("m", whole(48), whole(96))
    ours = dequantized(load_grouped(storage, cut, tensors), cut, storage)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_actorder_permutes_groups() -> None:
    """`weight_g_idx`, which the package no longer writes: the columns of a checkpoint in another order."""
    torch.manual_seed(6)
    weight, order = torch.randn(16, 96), torch.randperm(96)
    quantize = quantizer("pack-quantized", SCHEMES["W4A16"][1])
    tensors, sorted_by_group = quantize("m", weight[:, order])
    codes = unpack(tensors["weight_packed"], 4)[:, order.argsort()]
    groups = (torch.arange(96) // 32)[order.argsort()].int()
    tensors |= {"weight_packed": pack(codes, 4), "weight_g_idx": groups}
    storage = PackedStorage(4, 32, has_zeros=False, has_g_idx=True)
    cut = Cut("m", whole(16), whole(96))
    ours = dequantized(load_grouped(storage, cut, tensors), cut, storage)
    torch.testing.assert_close(ours, sorted_by_group[:, order.argsort()], atol=1e-5, rtol=1e-5)


def refused(**changes: Any) -> str:
    """What is said about the W4A16 configuration with changes, in its one group or at its top."""
    form, weights, inputs = SCHEMES["W4A16"]
    found = config(form, weights, inputs)
    for key, value in changes.items():
        place = found["config_groups"]["group_0"] if key in found["config_groups"]["group_0"] else found
        place[key] = value
    with pytest.raises(StartupError) as error:
        formats_for(found, {}, ModelOptions(), no_cache)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform_config": {"config_groups": {"u": {}}}}, "with a transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse weights \('sparse-24-bitmask'\)"),
        ({"quantization_status": "calibration"}, "quantization_status 'calibration' is not finished"),
        ({"targets": ["Embedding"]}, "the target 'Embedding' is not supported"),
        ({"format": "marlin-24"}, "in the format 'marlin-24' with weights int4 per group"),
        ({"format": "nvfp4-pack-quantized"}, "in the format 'nvfp4-pack-quantized'"),
        ({"weights": args(2, "group", group_size=32)}, "packed weights of 2 bits"),
        ({"weights": args(4, "group", group_size=16)}, "group_size 16 are not supported.* multiple of 32"),
        ({"input_activations": DYNAMIC}, "inputs dynamic int8 per token is not supported"),
        (
            {
                "format": "int-quantized",
                "weights": args(8, "channel"),
                "input_activations": args(8, "tensor"),
            },
            "inputs int8 per tensor is not supported",
        ),
        ({"surprise": 1}, r"quantization_config \(compressed-tensors\): .*surprise"),
        ({"weights": {**args(4, "group", group_size=32), "surprise": 1}}, "unknown field `surprise`"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    assert re.search(message, refused(**changes))


def test_ignored_and_targeted_modules() -> None:
    form, weights, _ = SCHEMES["W4A16"]
    found = config(form, weights, None, ignore=["re:.*down_proj", "model.layers.0.self_attn.q_proj"])
    found["config_groups"]["group_1"] = {
        "targets": ["re:.*up_proj"],
        "weights": args(8, "channel", type="float"),
        "format": "float-quantized",
    }
    formats = formats_for(found, {}, ModelOptions(), no_cache)
    kinds = {
        module: type(formats.format_of(f"model.layers.0.{module}", "linear")).__name__
        for module in ("mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    }
    assert list(kinds.values()) == ["Unquantized", "Unquantized", "Grouped", "FP8"]
    assert type(formats.format_of("model.embed_tokens", "tied head")) is Unquantized


def test_names_of_a_whole_model_mean_its_text_part() -> None:
    names = ["language_model.lm_head", "re:model.language_model.layers.0.*"]
    given = config("int-quantized", args(8, "channel"), DYNAMIC, ignore=names)
    formats = formats_for(given, {}, ModelOptions(), no_cache)
    assert formats.format_of("lm_head", "head") == Unquantized()
    assert formats.format_of("model.layers.0.mlp.up_proj", "linear") == Unquantized()
    assert formats.format_of("model.layers.1.mlp.up_proj", "linear") != Unquantized()
