"""How far the launches of a decode step can keep an H100 or H200 busy, known before either is there: blocks
against multiprocessors, and bytes under way against what the memory needs (Little's law).

    at once   of a multiprocessor: blocks that its registers, shared memory and 2,048 threads hold
    waves     blocks / (multiprocessors · at once); the last one may be a small one
    under way at once · bytes that a block has under way, of as many blocks as there are
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.paged_kv import PagedKV
from worker.kernels.triton import decode_attention
from worker.kernels.triton.decode_attention import DecodePlan, Scores
from worker.kernels.triton.gemv import RowNorm, gemv
from worker.kernels.triton.int4_gemv import int4_gemv
from worker.kernels.triton.int4_matmul import int4_matmul
from worker.kernels.triton.matmul import matmul

from .compile import Launch, Resources, compile_for, record
from .floors import BYTES
from .shapes import SHAPES, Shape
from .variants import BF16, FP32, INT8, empty

PROCESSORS = 132
"""Of an H100 or H200."""
REGISTERS, SHARED_BYTES, THREADS, BLOCKS = 65_536, 233_472, 2048, 32
"""Of each (CUDA C++ Programming Guide, compute capability 9.0)."""
RESERVED_BYTES = 1024
"""Of shared memory, for each block."""
NEEDED_BYTES = 4.8e12 * 0.7e-6 / PROCESSORS
"""Under way on each, for the H200's bandwidth at some 0.7 µs from a load to its number."""
CONTEXT = 1024
WEIGHTS = ("bf16", "int8", "int4")
"""fp8 loads as int8 does."""


class Row(NamedTuple):
    shape: str
    name: str
    launch: Launch
    num_bytes: float
    """That it reads."""


def rows() -> Iterator[Row]:
    """Of each model: a step of one row with each kind of weights, and of 16 rows with 16 bits and 4."""
    for shape in SHAPES.values():
        for weights, count in (*((kind, 1) for kind in WEIGHTS), ("bf16", 16), ("int4", 16)):
            for name, launch, num_bytes in _products(shape, weights, count):
                label = f"{weights}, {count} row{'s' * (count > 1)}: {name}"
                yield Row(shape.name, label, launch, num_bytes)
        attention = f"attention, 1 × {CONTEXT:,} tokens"
        num_bytes = CONTEXT * shape.kv_bytes() / shape.num_layers
        yield Row(shape.name, attention, _attention(shape), num_bytes)


def at_once(found: Resources) -> int:
    """Blocks of a multiprocessor. A warp's registers are given out in pieces of 256."""
    warp = -(-found.registers * 32 // 256) * 256
    return min(
        REGISTERS // (warp * found.num_warps),
        SHARED_BYTES // (found.shared_bytes + RESERVED_BYTES),
        THREADS // (32 * found.num_warps),
        BLOCKS,
    )


def table(jobs: int) -> list[str]:
    """Lines of Markdown."""
    wanted = list(rows())
    launches: list[Launch] = []
    for row in wanted:
        if row.launch not in launches:
            launches.append(row.launch)
    with ProcessPoolExecutor(jobs) as pool:
        compiled = list(pool.map(partial(compile_for, capability=90), launches))
    lines = [
        "## Can a step keep the memory busy?",
        "",
        "Decoding is bound by memory. By Little's law an H200 needs 4.8 TB/s × 0.7 µs under way, that is",
        f"{NEEDED_BYTES / 1024:.0f} KiB for each of its {PROCESSORS} multiprocessors; less is **bold**,",
        "unless it is all that there is to read.",
        "*At once*: blocks that a multiprocessor holds. *Waves*: blocks / (multiprocessors · at once); up to",
        "1.0 all run together. *Load*: bytes that a thread loads at once. *Under way*: KiB of a",
        "multiprocessor, at most. Kernels as above, for sm_90.",
        "",
        "| model | launch | blocks | at once | waves | load | under way |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [_line(row, compiled[launches.index(row.launch)]) for row in wanted]


def under_way(launch: Launch, found: Resources) -> float:
    """Bytes of a multiprocessor, on average if not all have as many blocks."""
    return min(at_once(found), launch.blocks / PROCESSORS) * found.block_bytes


def _line(row: Row, found: Resources) -> str:
    blocks, held = row.launch.blocks, at_once(found)
    flowing = under_way(row.launch, found)
    waves = blocks / (PROCESSORS * held)
    shown = f"{flowing / 1024:.0f}"
    if flowing < NEEDED_BYTES:
        everything = waves <= 1 and blocks * found.block_bytes >= row.num_bytes
        shown = f"{shown}, all" if everything else f"**{shown}**"
    return f"| {row.shape} | {row.name} | {blocks:,} | {held} | {waves:.2f} | {found.load_bytes} | {shown} |"


def _products(shape: Shape, weights: str, count: int) -> Iterator[tuple[str, Launch, float]]:
    """(name, launch, bytes of the weights)"""
    size, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    norm = RowNorm(empty(size), 1e-6)
    for name, n, k, before, gated in (
        ("q, k, v", shape.qkv_rows, size, norm, False),
        ("attention's output", size, heads, None, False),
        ("gate, up", 2 * inner, size, norm, True),
        ("down", size, inner, None, False),
        ("head", shape.vocab_size, size, norm, False),
    ):
        kind = weights
        if name == "head" and weights == "int4":
            if count > 1:
                continue
            kind = "int8"
        yield (
            name,
            _product(kind, empty(count, k), n, before, gated=gated),
            n * k * (0.5 if kind == "int4" else BYTES[kind]),
        )


def _product(weights: str, x: Tensor, n: int, norm: RowNorm | None, *, gated: bool) -> Launch:
    k = x.shape[1]
    if weights == "int4":
        packed, scales = empty(n, k // 2, dtype=torch.uint8), empty(n, k // 128, dtype=FP32)
        call = partial(int4_gemv, x, packed, scales, None, 128, norm=norm, gated=gated)
        if len(x) > 1:
            call = partial(int4_matmul, x, packed, scales, None, 128)
    elif len(x) > 1:
        call = partial(matmul, x, empty(n, k))
    else:
        weight = empty(n, k, dtype=INT8 if weights == "int8" else BF16)
        per_row = empty(n, dtype=FP32) if weights == "int8" else None
        call = partial(gemv, x, weight, norm=norm, w_scales=per_row, gated=gated)
    return record(call)[0]


def _attention(shape: Shape) -> Launch:
    """Blocks: of the items that the context gives, each of all KV heads."""
    cache = PagedKV(empty(2, 1000, shape.num_kv_heads, 32, shape.head_dim))
    query, lens = empty(1, shape.num_heads, shape.head_dim), empty(1, dtype=torch.int32)
    plan = DecodePlan(256, 4096, shape.num_heads, shape.head_dim, query.device)
    count = decode_attention.programs(PROCESSORS, cache)
    tables = empty(1, 1024, dtype=torch.int32)
    call = partial(
        decode_attention.decode_attention, query, cache, tables, lens, plan, Scores(0.1), num_programs=count
    )
    launch = record(call)[0]
    items = min(-(-CONTEXT // decode_attention.TILE), count)
    return replace(launch, grid=(items, shape.num_kv_heads))
