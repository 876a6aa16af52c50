"""Writes fixtures.safetensors: matrices packed and unpacked again by GPTQModel's own code.

    pip download --no-deps --no-binary :all: gptqmodel==7.7.0 && tar xf gptqmodel-7.7.0.tar.gz
    python -m tests.worker.quantization.make_fixtures gptqmodel-7.7.0

GPTQModel needs a compiler and many packages to be installed, so its functions are taken out of its sources:
packing and dequantization of GPTQ, and those of AWQ (which are AutoAWQ's).
"""

import ast
import contextlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FIXTURES = Path(__file__).with_name("fixtures.safetensors")
ROWS, COLUMNS = 16, 128


def functions(path: Path, names: set[str], **environment: Any) -> SimpleNamespace:
    """Functions and constants of a source file, methods included, without the rest of it."""
    tree = ast.parse(path.read_text())
    found = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.FunctionDef) and node.name in names)
        or (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in names
        )
    ]
    lines: list[ast.stmt] = list(ast.parse("from __future__ import annotations").body)
    module = ast.fix_missing_locations(ast.Module([*lines, *found], []))
    exec(compile(module, str(path), "exec"), environment)
    return SimpleNamespace(**environment)


def affine(bits: int, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(weight [N, K], scales [N, groups], zeros [N, groups])"""
    weight = torch.randn(ROWS, COLUMNS)
    groups = weight.view(ROWS, -1, group)
    most = (1 << bits) - 1
    if symmetric:
        scales = groups.abs().amax(2) / (most // 2)
        zeros = torch.full_like(scales, most // 2 + 1)
    else:
        low, high = groups.amin(2), groups.amax(2)
        scales = (high - low) / most
        zeros = (-low / scales).round()
    return weight, scales.half().float(), zeros


def gptq(
    source: Path, bits: int, group: int, *, symmetric: bool, shuffled: bool, v2: bool
) -> dict[str, Tensor]:
    names = {"pack_original", "dequantize_weight", "_dequantize_from_codes", "_torch_right_shift"}
    limits = SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext())
    conv = SimpleNamespace(pytorch_utils=SimpleNamespace(Conv1D=()))
    theirs = functions(
        source / "gptqmodel/nn_modules/qlinear/__init__.py",
        names,
        t=torch, np=np, math=math, nn=torch.nn, THREADPOOLCTL=limits, transformers=conv, _ConvNd=(),
    )  # fmt: skip
    weight, scales, zeros = affine(bits, group, symmetric=symmetric)
    g_idx = torch.arange(COLUMNS, dtype=torch.int32) // group
    if shuffled:
        g_idx = g_idx[torch.randperm(COLUMNS)]
    module = SimpleNamespace(
        bits=bits,
        maxq=(1 << bits) - 1,
        pack_dtype_bits=32,
        pack_factor=32 // bits,
        pack_np_math_dtype=np.uint32,
        pack_np_dtype=np.int32,
        planar=False,
        in_features=COLUMNS,
        dequant_dtype=torch.int16 if bits == 8 else torch.int8,
        wf_unsqueeze_zero=torch.arange(0, 32, bits, dtype=torch.int32).view(1, 1, -1),
        wf_unsqueeze_neg_one=torch.arange(0, 32, bits, dtype=torch.int32).view(1, -1, 1),
        _init_wf_unsqueeze_buffers=lambda: None,
    )
    module.register_buffer = lambda name, value: setattr(module, name, value)
    module._dequantize_from_codes = lambda *a, **k: theirs._dequantize_from_codes(module, *a, **k)
    linear = SimpleNamespace(weight=SimpleNamespace(data=weight), bias=None)
    theirs.pack_original(module, linear, scales, zeros, g_idx)
    expected = theirs.dequantize_weight(module).t().float()
    ones = int.from_bytes(bytes([0x11 if bits == 4 else 0x01] * 4), "little")
    return {
        "qweight": module.qweight,
        "qzeros": module.qzeros if v2 else module.qzeros - ones,
        "scales": module.scales,
        "g_idx": g_idx,
        "expected": expected,
    }


def awq(source: Path, group: int) -> dict[str, Tensor]:
    names = {"pack_awq", "pack_awq_columns", "unpack_awq", "_unpack_columnwise", "reverse_awq_order"}
    names |= {"dequantize_gemm", "AWQ_ORDER", "AWQ_REVERSE_ORDER"}
    theirs = functions(
        source / "gptqmodel/quantization/awq/utils/packing_utils.py", names, torch=torch, math=math
    )
    weight, scales, zeros = affine(4, group, symmetric=False)
    scales, zeros, spread = scales.t().contiguous(), zeros.t().contiguous(), torch.arange(COLUMNS) // group
    codes = (weight.t() / scales[spread] + zeros[spread]).round().clamp(0, 15).int()
    qweight, qzeros = theirs.pack_awq(codes, zeros.int(), 4)
    expected = theirs.dequantize_gemm(qweight, qzeros, scales, 4, group).t()
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales.half(), "expected": expected}


def main(source: Path) -> None:
    torch.manual_seed(11)
    cases = {
        "gptq, 4 bits": gptq(source, 4, 32, symmetric=True, shuffled=False, v2=False),
        "gptq, 4 bits, asymmetric, desc_act": gptq(source, 4, 32, symmetric=False, shuffled=True, v2=False),
        "gptq_v2, 4 bits, asymmetric": gptq(source, 4, 64, symmetric=False, shuffled=False, v2=True),
        "gptq, 8 bits": gptq(source, 8, 64, symmetric=True, shuffled=False, v2=False),
        "gptq, 8 bits, asymmetric, desc_act": gptq(source, 8, 32, symmetric=False, shuffled=True, v2=False),
        "awq": awq(source, 32),
    }
    tensors = {f"{case}/{name}": value for case, found in cases.items() for name, value in found.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FIXTURES)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
