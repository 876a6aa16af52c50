"""Matrix multiplication alone: our kernels in C beside torch's, over all linear layers of one decoder layer.

Times are of the thread (CPU time, one thread), the least of many short runs: so a busy machine disturbs them
little, except through the caches and the memory that its cores share.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.cpu import library
from worker.kernels.cpu.library import Library
from worker.kernels.matmul import Int4Part, Int8Part, Matrix, pack_int4
from worker.kernels.native_matrices import NativeMatrices

SHAPES = ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072))
"""[N, K] of qkv, o, gate and up, down in a layer of Qwen3-0.6B."""
COPIES = 4
"""Of each matrix, taken in turn, so that little of them is still in a cache."""
GROUP = 128
Multiply = Callable[[Tensor], Tensor]


class Point(NamedTuple):
    kind: str
    rows: int
    ours: float
    """Seconds"""
    torchs: float | None
    """None: torch has nothing for so few rows."""
    weights_bytes: float


def measure(rows: Sequence[int], repetitions: int) -> list[Point]:
    """Raises StartupError without a compiler."""
    kernels, _ = library.load("native", os.environ)
    assert kernels is not None
    kernels.set_threads(1)
    torch.set_num_threads(1)
    points = []
    for kind in ("float32", "bfloat16", "int8", "int4"):
        layers = {shape: [_pair(kind, *shape, kernels) for _ in range(COPIES)] for shape in SHAPES}
        num_bytes = sum(n * k for n, k in SHAPES) * {"float32": 4, "bfloat16": 2, "int8": 1}.get(
            kind, 0.5 + 4 / GROUP
        )
        for m in rows:
            ours, torchs = 0.0, 0.0
            for (_, k), pairs in layers.items():
                x = torch.randn(m, k, dtype=torch.float32 if kind == "float32" else torch.bfloat16)
                ours += _least([matrix.multiply for matrix, _ in pairs], x, repetitions)
                torchs += _least([peer for _, peer in pairs], x, repetitions)
            too_few = kind == "int8" and m <= 16
            points.append(Point(kind, m, ours, None if too_few else torchs, num_bytes))
    return points


def report(points: Sequence[Point]) -> str:
    lines = [
        "One thread, CPU time, one layer of Qwen3-0.6B's shape; torch: oneDNN with packed weights, `_int_mm`",
        "(without the rounding of x), `_weight_int4pack_mm_for_cpu`.",
        "",
        "| weights | rows | ms | GB/s of weights | GOP/s | torch, ms | torch / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    products = sum(n * k for n, k in SHAPES)
    for point in points:
        torchs = ("–", "–")
        if point.torchs is not None:
            torchs = (f"{point.torchs * 1e3:.2f}", f"{point.torchs / point.ours:.2f}")
        rates = point.weights_bytes / point.ours / 1e9, 2 * products * point.rows / point.ours / 1e9
        lines.append(
            f"| {point.kind} | {point.rows} | {point.ours * 1e3:.2f} | {rates[0]:.1f} | {rates[1]:.0f} "
            f"| {torchs[0]} | {torchs[1]} |"
        )
    return "\n".join(lines)


def _pair(kind: str, n: int, k: int, kernels: Library) -> tuple[Matrix, Multiply]:
    """Ours, and torch's of the same shape."""
    ours = NativeMatrices(kernels)
    if kind == "int8":
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        return ours.int8([Int8Part(weight, torch.rand(n))], None, quantize_input=True), _int_mm(weight)
    if kind == "int4":
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
        part = Int4Part(pack_int4(codes), torch.rand(n, k // GROUP), None)
        return ours.int4([part], None, columns=k, group=GROUP), _int4pack(codes)
    weight = torch.randn(n, k, dtype=torch.float32 if kind == "float32" else torch.bfloat16)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return ours.dense([weight], None), lambda x: multiply(x, packed, None, "none", [], "")


def _int_mm(weight: Tensor) -> Multiply:
    codes = torch.randint(-127, 128, (4096, weight.shape[1]), dtype=torch.int8)
    return lambda x: torch._int_mm(codes[: max(len(x), 17)], weight.t())


def _int4pack(codes: Tensor) -> Multiply:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    scales = torch.ones(codes.shape[1] // GROUP, codes.shape[0], 2, dtype=torch.bfloat16)
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)


def _least(multiply: Sequence[Multiply], x: Tensor, repetitions: int) -> float:
    least = float("inf")
    for _ in range(repetitions):
        for one in multiply:
            began = time.thread_time()
            one(x)
            least = min(least, time.thread_time() - began)
    return least
