"""Finds the fastest tiles of products on this GPU, and writes them for the worker to read.

Every product of the published models: few rows, then a batch, then prompts. The file is written after each,
so a run that is cut off leaves what it found; what a file had before stays until it is measured anew. Only
what is faster than the rule by more than noise becomes an entry.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from worker.kernels.triton import int4_matmul, matmul, tuning
from worker.kernels.triton.tuning import Entry, Product, Tiles, Tuned

from .floors import BYTES
from .results import Measurement
from .shapes import SHAPES, Shape
from .timing import copies, seconds

WORTH = 1.03
"""Times faster than the rule."""
GROUP = 32
"""Columns of a scale of 4-bit weights."""
M_TILES = {16: (16,), 64: (32, 64), tuning.MANY: (64, 128)}
KINDS = ("bf16 × bf16", "bf16 × fp8", "bf16 × int4", "int8 × int8", "fp8 × fp8")
"""As worker/kernels/triton/matrices.py multiplies the weights of each kind."""
OTHERWISE = {"bf16 × bf16": (tuning.MANY,), "bf16 × fp8": (tuning.MANY,), "fp8 × fp8": (16, 64)}
"""Classes of rows that are multiplied in another way: by cuBLAS, or from other types."""
Multiply = Callable[[Tiles | None], Callable[[], object]]
"""Tiles, or the rule's → a product, ready to be timed"""


def measure(
    device: torch.device,
    dtype: torch.dtype,
    gpu: str,
    versions: Mapping[str, str],
    wanted: Sequence[Product],
    folder: Path | None = None,
) -> Iterator[Measurement]:
    """One for each product. `folder`: for the file, if not where the worker looks."""
    known = dict(tuning.read(gpu))
    for product in wanted:
        best, times = fastest(device, dtype, product)
        known.pop(product, None)
        if best is not None:
            known[product] = best
        entries = [Entry(*key, tiles=value._asdict()) for key, value in known.items()]
        tuning.write(Tuned(gpu, dict(versions), tuple(entries)), folder)
        rule, least = times
        tiles = "the rule" if best is None else "tiles {} × {} × {}, {} warps, {} stages".format(*best)
        yield Measurement(
            part="tune",
            name=f"{product.kind}, {label(product)}: {tiles}, beside the rule",
            value=least * 1e6,
            unit="µs",
            limit=rule * 1e6,
        )


def products(device: torch.device, shapes: Sequence[Shape] = tuple(SHAPES.values())) -> list[Product]:
    """Of all matrices, most valuable first: the largest model, 16-bit weights, few rows."""
    floats = device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 9)
    largest_first = sorted(shapes, key=lambda shape: -shape.layer_weights)
    found = [
        Product(kind, rows, n, k)
        for kind, rows, shape in itertools.product(KINDS, M_TILES, largest_first)
        for n, k in matrices(shape)
        if (floats or "fp8" not in kind) and rows not in OTHERWISE.get(kind, ())
    ]
    return list(dict.fromkeys(found))


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """[n, k] of a layer's, and of the head."""
    size, inner = shape.hidden_size, shape.intermediate_size
    heads = shape.num_heads * shape.head_dim
    return [(shape.qkv_rows, size), (size, heads), (2 * inner, size), (size, inner), (shape.vocab_size, size)]


def fastest(
    device: torch.device, dtype: torch.dtype, product: Product
) -> tuple[Tiles | None, tuple[float, float]]:
    """(tiles, or None where the rule is as fast; seconds by the rule, and the least found)"""
    calls = _calls(device, dtype, product)

    def timed(tiles: Tiles | None) -> float:
        return seconds([call(tiles) for call in calls], device, 3)[0]

    rule = timed(None)
    best, least = None, rule / WORTH
    for tiles in candidates(product):
        try:
            taken = timed(tiles)
        except Exception as error:  # more shared memory or registers than there are
            if "out of resource" not in str(error):
                raise
            continue
        if taken < least:
            best, least = tiles, taken
    return best, (rule, rule if best is None else least)


def candidates(product: Product) -> Iterator[Tiles]:
    """Whose sums take 4 to 128 registers of each thread."""
    for m in M_TILES[product.rows]:
        for n, k, num_warps, num_stages in itertools.product((32, 64, 128), (64, 128), (4, 8), (3, 4)):
            if 128 * num_warps <= m * n <= 4096 * num_warps:
                yield Tiles(m, n, k, num_warps, num_stages)


def label(product: Product) -> str:
    rows = "many rows" if product.rows == tuning.MANY else f"up to {product.rows} rows"
    return f"{rows} × [{product.n}, {product.k}]"


def rows_of(product: Product) -> int:
    """That stand for the class."""
    return {16: 16, 64: 64}.get(product.rows, 2048)


def _calls(device: torch.device, dtype: torch.dtype, product: Product) -> list[Multiply]:
    """Of several copies of the weights, so that none is found in the cache."""
    n, k = product.n, product.k
    x = torch.randn(rows_of(product), k, device=device, dtype=dtype)
    finished = torch.zeros(1 << 14, dtype=torch.int32, device=device)  # as the worker has it
    w_scales, x_scales = (torch.rand(size, device=device) * 0.01 for size in (n, len(x)))

    def int4() -> Multiply:
        packed = torch.randint(0, 256, (n, -(-k // 64) * 32), device=device, dtype=torch.uint8)
        groups = torch.full((n, -(-k // GROUP)), 0.01, device=device)
        return lambda tiles: partial(
            int4_matmul.int4_matmul, x, packed, groups, None, GROUP, tiles=tiles, finished=finished
        )

    def int8() -> Multiply:
        codes, rows = (torch.randint(-100, 100, (m, k), device=device).to(torch.int8) for m in (n, len(x)))
        return lambda tiles: partial(
            matmul.matmul, rows, codes, x_scales=x_scales.view(-1, 1), w_scales=w_scales, out_dtype=dtype,
            tiles=tiles, finished=finished,
        )  # fmt: skip

    def fp8() -> Multiply:
        codes = torch.randint(-100, 100, (n, k), device=device).to(torch.float8_e4m3fn)
        if product.rows == tuning.MANY:
            return lambda tiles: partial(
                matmul.matmul, x.to(codes.dtype), codes, x_scales=x_scales.view(-1, 1), w_scales=w_scales,
                out_dtype=dtype, tiles=tiles, finished=finished,
            )  # fmt: skip
        return lambda tiles: partial(
            matmul.matmul, x, codes, w_scales=w_scales, tiles=tiles, finished=finished
        )

    def bf16() -> Multiply:
        weight = torch.randn(n, k, device=device, dtype=dtype) * k**-0.5
        return lambda tiles: partial(matmul.matmul, x, weight, tiles=tiles, finished=finished)

    stored = product.kind.rpartition(" ")[2]
    make = {"int4": int4, "int8": int8, "fp8": fp8, "bf16": bf16}[stored]
    return [make() for _ in range(copies(int(n * k * BYTES[stored]), device))]
