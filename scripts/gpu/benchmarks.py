"""The device's ceilings, what a node of a graph costs, and each kernel beside the ceiling and torch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kernels.triton import int4_matmul
from worker.kernels.triton.activation import activate
from worker.kernels.triton.decode_attention import SPLIT, DecodePlan, Scores, decode_attention, plan_decode
from worker.kernels.triton.gemv import gemv
from worker.kernels.triton.matmul import matmul
from worker.kernels.triton.norm import norm
from worker.kernels.triton.paged import PagedKV
from worker.kernels.triton.prefill_attention import prefill_attention

from .floors import Ceilings
from .results import Measurement
from .timing import copies, replayed_s

BF16, CUDA = torch.bfloat16, torch.device("cuda")
Calls = Sequence[Callable[[], object]]


def ceilings() -> tuple[Ceilings, list[Measurement]]:
    """Bytes per second (the better of copying and reading), bf16 and, where there is, float8 products."""
    bytes_per_s = _bandwidth()
    size = 8192
    a, b = (torch.randn(size, size, device=CUDA, dtype=BF16) for _ in range(2))
    rates = {"bf16": 2 * size**3 / replayed_s([partial(torch.mm, a, b)])[1]}
    if torch.cuda.get_device_capability() >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=CUDA)
        call = partial(torch._scaled_mm, a8, b8, one, one, out_dtype=BF16)
        rates["fp8"] = 2 * size**3 / replayed_s([call])[1]
    found = [
        Measurement("ceilings", name, rate / 1e12, "TB/s", "higher") for name, rate in bytes_per_s.items()
    ]
    found += [
        Measurement("ceilings", f"{name} product of {size}³", rate / 1e12, "TFLOP/s", "higher")
        for name, rate in rates.items()
    ]
    return Ceilings(max(bytes_per_s.values()), rates["bf16"]), found


def _bandwidth() -> dict[str, float]:
    source, target = (torch.ones(1 << 28, dtype=torch.float32, device=CUDA) for _ in range(2))
    return {
        "copy, read + write": 2 * source.nbytes / replayed_s([partial(target.copy_, source)])[1],
        "read (torch.sum)": source.nbytes / replayed_s([partial(torch.sum, source)])[1],
    }


def graph_node(_: Ceilings) -> Iterator[Measurement]:
    """Time from one tiny kernel to the next inside a graph: what every launch of a step costs at least."""
    x = torch.zeros(1, 1024, device=CUDA, dtype=BF16)
    weight = torch.ones(1024, device=CUDA, dtype=BF16)
    many: dict[str, Calls] = {
        "torch add_": [partial(x.add_, 1)] * 500,
        "Triton RMSNorm of 1,024": [partial(norm, x, weight, 1e-6)] * 500,
    }
    for name, calls in many.items():
        middle, least, most = replayed_s(calls)
        yield Measurement("graph_node", name, middle * 1e6, "µs", spread=(least * 1e6, most * 1e6))


def kernels(limits: Ceilings) -> Iterator[Measurement]:
    """At Llama-3.1-8B's shapes; a torch line follows the Triton line that does the same."""
    yield from _products(limits)
    for batch, context in ((1, 1024), (1, 8192), (32, 1024), (256, 1024)):
        yield from _decode(limits, batch, context)
    for tokens in (1024, 8192):
        yield _prefill(limits, tokens)
    x = torch.randn(256, 28672, device=CUDA, dtype=BF16)
    yield _against_bytes(limits, "SwiGLU, 256 rows of 14,336", [partial(activate, x)], x.nbytes * 3 // 2)


def _products(limits: Ceilings) -> Iterator[Measurement]:
    n, k = 28672, 4096
    yield from _sixteen_bits(limits, n, k)
    yield from _fewer_bits(limits, n, k)


def _sixteen_bits(limits: Ceilings, n: int, k: int) -> Iterator[Measurement]:
    weights = [torch.randn(n, k, device=CUDA, dtype=BF16) * 0.02 for _ in range(copies(2 * n * k))]
    for m in (1, 16):
        x = torch.randn(m, k, device=CUDA, dtype=BF16)
        ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"matmul": matmul, "torch": F.linear}
        if m == 1:
            ways = {"gemv": gemv, **ways}
        for name, way in ways.items():
            calls = [partial(way, x, weight) for weight in weights]
            yield _against_bytes(limits, f"{name} bf16 {m} × [{n}, {k}]", calls, 2 * n * k)


def _fewer_bits(limits: Ceilings, n: int, k: int) -> Iterator[Measurement]:
    eight = [torch.randint(-127, 128, (n, k), device=CUDA, dtype=torch.int8) for _ in range(copies(n * k))]
    count = copies(n * k // 2)
    four = [torch.randint(0, 256, (n, k // 2), device=CUDA, dtype=torch.uint8) for _ in range(count)]
    scales, groups = torch.rand(n, device=CUDA) * 0.01, torch.rand(n, k // 128, device=CUDA) * 0.01
    for m in (1, 16):
        x = torch.randn(m, k, device=CUDA, dtype=BF16)
        label = f"{m} × [{n}, {k}]"
        calls = [partial(matmul, x, weight, w_scales=scales) for weight in eight]
        yield _against_bytes(limits, f"matmul W8A16 {label}", calls, n * k)
        calls = [partial(int4_matmul.int4_matmul, x, weight, groups, None, 128) for weight in four]
        yield _against_bytes(limits, f"matmul W4A16 {label}", calls, n * k // 2 + groups.nbytes)


HEADS, KV_HEADS, DIM, BLOCK_SIZE = 32, 8, 128, 16


def _decode(limits: Ceilings, batch: int, context: int) -> Iterator[Measurement]:
    width = context // BLOCK_SIZE
    bytes_each = 2 * 2 * batch * context * KV_HEADS * DIM
    shape = (2, batch * width, KV_HEADS, BLOCK_SIZE, DIM)
    caches = [torch.randn(shape, device=CUDA, dtype=BF16) for _ in range(copies(bytes_each))]
    tables = torch.randperm(batch * width, device=CUDA).int().view(batch, width)
    lens = torch.full((batch,), context, dtype=torch.int32, device=CUDA)
    query = torch.randn(batch, HEADS, DIM, device=CUDA, dtype=BF16)
    plan = DecodePlan(batch, batch * -(-context // SPLIT), HEADS, DIM, CUDA)
    plan_decode(plan, lens)
    programs = max(2 * torch.cuda.get_device_properties(0).multi_processor_count // KV_HEADS, 1)
    name = f"{batch} × {context} tokens, {HEADS}/{KV_HEADS} heads of {DIM}"
    calls = [
        partial(
            decode_attention, query, PagedKV(cache), tables, lens, plan, Scores(0.1), num_programs=programs
        )
        for cache in caches
    ]
    yield _against_bytes(limits, f"decode attention {name}", calls, bytes_each)
    rows = query.unsqueeze(2)
    contiguous = [cache.view(2, batch, KV_HEADS, context, DIM) for cache in caches]
    calls = [
        partial(F.scaled_dot_product_attention, rows, kv[0], kv[1], enable_gqa=True) for kv in contiguous
    ]
    yield _against_bytes(limits, f"torch SDPA, contiguous, {name}", calls, bytes_each)


def _prefill(limits: Ceilings, tokens: int) -> Measurement:
    width = tokens // BLOCK_SIZE
    cache = torch.randn(2, width, KV_HEADS, BLOCK_SIZE, DIM, device=CUDA, dtype=BF16)
    table = torch.randperm(width, device=CUDA).int().view(1, width)
    query = torch.randn(tokens, HEADS, DIM, device=CUDA, dtype=BF16)
    start = torch.tensor([0, tokens], dtype=torch.int32, device=CUDA)
    call = partial(prefill_attention, query, PagedKV(cache), table, start, start[1:].clone(), Scores(0.1))
    flops = 2 * tokens * tokens * HEADS * DIM
    least, middle, most = sorted(flops / seconds / 1e12 for seconds in replayed_s([call]))
    name, spread = f"prefill attention, {tokens} tokens", (least, most)
    return Measurement("kernels", name, middle, "TFLOP/s", "higher", limits.flops / 1e12, spread=spread)


def _against_bytes(limits: Ceilings, name: str, calls: Calls, num_bytes: int) -> Measurement:
    seconds, least, most = replayed_s(calls)
    floor = num_bytes / limits.bytes_per_s
    return Measurement(
        "kernels", name, seconds * 1e6, "µs", "lower", floor * 1e6, spread=(least * 1e6, most * 1e6)
    )
