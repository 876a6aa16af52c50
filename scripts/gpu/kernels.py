"""Each kernel beside the ceiling, and beside torch where torch does the same. Replayed from graphs, so that
it is the device that is timed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.gpu.sampler import greedy
from worker.kernels.paged_kv import PagedKV
from worker.kernels.triton.activation import activate
from worker.kernels.triton.decode_attention import (
    SPLIT,
    DecodePlan,
    Scores,
    decode_attention,
    plan_decode,
    programs,
)
from worker.kernels.triton.gemv import gemv
from worker.kernels.triton.int4_gemv import int4_gemv
from worker.kernels.triton.int4_matmul import int4_matmul
from worker.kernels.triton.matmul import matmul
from worker.kernels.triton.norm import norm
from worker.kernels.triton.prefill_attention import prefill_attention
from worker.kernels.triton.sampling import Parameters, SampledRows, edit, sample

from .floors import Ceilings
from .jobs import KERNELS
from .results import At, Measurement
from .timing import Calls, copies, launched_s, seconds


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the kernels that are timed: one layer's, and steps of some sizes."""

    n: int = 28_672
    k: int = 4096
    """A product's outputs and inputs: gate and up of Llama-3.1-8B."""
    rows: tuple[int, ...] = (1, 16)
    prompt_rows: int = 2048
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 32
    decodes: tuple[tuple[int, int], ...] = ((256, 1024), (32, 1024), (1, 1024), (1, 8192))
    """(sequences, tokens of each)"""
    prompts: tuple[int, ...] = (1024, 8192)
    vocab: int = 151_936
    sampled: tuple[int, ...] = (1, 256)
    """Rows of logits."""
    table_tokens: tuple[int, ...] = (512, 32_768)
    """For how long a sequence block tables have room."""


class Place:
    """Where and on what everything is timed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, ceilings: Ceilings, sizes: Sizes) -> None:
        self.device, self.dtype, self.ceilings, self.sizes = device, dtype, ceilings, sizes
        self.finished = torch.zeros(1 << 14, dtype=torch.int32, device=device)
        """Of all products in parts, as the worker has it."""

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def against_bytes(self, name: str, calls: Calls, num_bytes: float) -> Measurement:
        return self._measurement(name, calls, num_bytes / self.ceilings.bytes_per_s)

    def against_products(self, name: str, calls: Calls, flops: float, kind: str = "bf16") -> Measurement:
        return self._measurement(name, calls, flops / self.ceilings.flops(kind))

    def _measurement(self, name: str, calls: Calls, floor_s: float) -> Measurement:
        middle, least, most = (taken * 1e6 for taken in seconds(calls, self.device))
        limit = floor_s * 1e6
        return Measurement(
            part="kernels", name=name, value=middle, unit="µs", limit=limit, spread=(least, most)
        )


def measure(
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    sizes: Sizes | None = None,
    groups: Sequence[str] = KERNELS,
) -> Iterator[Measurement]:
    """The ones that decide a step first; a torch line follows the line that does the same."""
    place = Place(device, dtype, ceilings, sizes or Sizes())
    for group in groups:
        yield from GROUPS[group](place)


def decodes(place: Place) -> Iterator[Measurement]:
    for batch, context in place.sizes.decodes:
        yield from decode_attentions(place, batch, context)


def prompts(place: Place) -> Iterator[Measurement]:
    for tokens in place.sizes.prompts:
        yield prefill_attentions(place, tokens)


def products(place: Place) -> Iterator[Measurement]:
    """Few rows beside the weights' bytes, a prompt beside the products."""
    n, k = place.sizes.n, place.sizes.k
    label = f"[{n}, {k}]"
    wide = place.random(1, 1).element_size()
    weights = [place.random(n, k) * 0.02 for _ in range(copies(wide * n * k, place.device))]
    several = partial(matmul, finished=place.finished)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"matmul": several, "torch": F.linear}
    for m in place.sizes.rows:
        x = place.random(m, k)
        for name, way in ({"gemv": gemv, **ways} if m == 1 else ways).items():
            calls = [partial(way, x, weight) for weight in weights]
            yield place.against_bytes(f"{name} bf16 {m} × {label}", calls, wide * n * k)
    x = place.random(place.sizes.prompt_rows, k)
    for name, way in ways.items():
        what, flops = f"{name} bf16 {len(x)} × {label}", 2.0 * len(x) * n * k
        yield place.against_products(what, [partial(way, x, weights[0])], flops)


def fewer_bits(place: Place) -> Iterator[Measurement]:
    device, n, k = place.device, place.sizes.n, place.sizes.k
    label = f"[{n}, {k}]"
    eight = [
        torch.randint(-127, 128, (n, k), device=device).to(torch.int8) for _ in range(copies(n * k, device))
    ]
    four = [
        torch.randint(0, 256, (n, k // 2), device=device, dtype=torch.uint8)
        for _ in range(copies(n * k // 2, device))
    ]
    scales, groups = torch.rand(n, device=device) * 0.01, torch.rand(n, k // 128, device=device) * 0.01
    several = partial(matmul, finished=place.finished)
    for m in place.sizes.rows:
        x = place.random(m, k)
        name, way = ("gemv", gemv) if m == 1 else ("matmul", several)
        calls = [partial(way, x, weight, w_scales=scales) for weight in eight]
        yield place.against_bytes(f"{name} W8A16 int8 {m} × {label}", calls, n * k)
        if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
            floats = [weight.to(torch.float8_e4m3fn) for weight in eight]
            calls = [partial(way, x, weight, w_scales=scales) for weight in floats]
            yield place.against_bytes(f"{name} W8A16 fp8 {m} × {label}", calls, n * k)
        four_bits = int4_gemv if m == 1 else partial(int4_matmul, finished=place.finished)
        calls = [partial(four_bits, x, weight, groups, None, 128) for weight in four]
        yield place.against_bytes(f"{name} W4A16 {m} × {label}", calls, n * k // 2 + groups.nbytes)


def many_rows(place: Place) -> Iterator[Measurement]:
    """A prompt times weights of 8 bits, rounded itself; torch's products beside ours."""
    device, n, k, rows = place.device, place.sizes.n, place.sizes.k, place.sizes.prompt_rows
    codes, weight = (torch.randint(-127, 128, (m, k), device=device).to(torch.int8) for m in (rows, n))
    scales, w_scales = torch.rand(rows, 1, device=device), torch.rand(n, device=device) * 0.01
    label, flops = f"{rows} × [{n}, {k}]", 2.0 * rows * n * k
    ours = partial(matmul, x_scales=scales, w_scales=w_scales, out_dtype=place.dtype)
    yield place.against_products(f"matmul W8A8 int8 {label}", [partial(ours, codes, weight)], flops, "int8")
    theirs: Callable[[], object] = partial(torch._int_mm, codes, weight.t())
    yield place.against_products(f"torch int8, without scales, {label}", [theirs], flops, "int8")
    if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        a, b = codes.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        yield place.against_products(f"matmul FP8 {label}", [partial(ours, a, b)], flops, "fp8")
        for fast in (True, False):
            theirs = partial(
                torch._scaled_mm, a, b.t(), scales, w_scales[None], out_dtype=place.dtype, use_fast_accum=fast
            )
            what = f"torch fp8, {'fast' if fast else 'exact'} sums, {label}"
            yield place.against_products(what, [theirs], flops, "fp8")


def decode_attentions(place: Place, batch: int, context: int) -> Iterator[Measurement]:
    """One layer's, over paged blocks in random order; torch's over contiguous keys and values."""
    sizes, device = place.sizes, place.device
    heads, dim = sizes.num_kv_heads, sizes.head_dim
    num_bytes = 2 * place.random(1, 1).element_size() * batch * context * heads * dim
    caches = [_cache(place, batch * context) for _ in range(copies(num_bytes, device))]
    name = f"{batch} × {context:,} tokens, {sizes.num_heads}/{heads} heads of {dim}"
    calls = [_decode_call(place, cache, batch, context, context) for cache in caches]
    yield place.against_bytes(f"decode attention {name}", calls, num_bytes)
    rows = place.random(batch, sizes.num_heads, 1, dim)
    contiguous = [cache.view(2, batch, heads, context, dim) for cache in caches]
    calls = [
        partial(F.scaled_dot_product_attention, rows, kv[0], kv[1], enable_gqa=True) for kv in contiguous
    ]
    yield place.against_bytes(f"torch SDPA, contiguous, {name}", calls, num_bytes)


def prefill_attentions(place: Place, tokens: int) -> Measurement:
    """One layer's, of one prompt."""
    sizes = place.sizes
    table = torch.randperm(tokens // sizes.block_size, device=place.device).int().view(1, -1)
    query = place.random(tokens, sizes.num_heads, sizes.head_dim)
    start = torch.tensor([0, tokens], dtype=torch.int32, device=place.device)
    kv, scores = PagedKV(_cache(place, tokens)), Scores(0.1)
    call = partial(prefill_attention, query, kv, table, start, start[1:].clone(), scores)
    flops = 2.0 * tokens * tokens * sizes.num_heads * sizes.head_dim
    return place.against_products(f"prefill attention, {tokens:,} tokens", [call], flops)


def around(place: Place) -> Iterator[Measurement]:
    """What stands between the products, for 256 rows, or as many as a prompt has where those are fewer."""
    rows = min(256, place.sizes.prompt_rows)
    gates, x = place.random(rows, place.sizes.n), place.random(rows, place.sizes.k)
    yield place.against_bytes(
        f"SwiGLU, {rows} rows of {place.sizes.n // 2:,}", [partial(activate, gates)], gates.nbytes * 3 / 2
    )
    call = partial(norm, x, place.random(place.sizes.k), 1e-6, add=x)
    yield place.against_bytes(f"RMSNorm + residual, {rows} rows of {place.sizes.k:,}", [call], 3 * x.nbytes)


def samplings(place: Place) -> Iterator[Measurement]:
    """From logits to tokens; logits are read and, edited, written."""
    device, vocab = place.device, place.sizes.vocab
    ways = {"greedy": (1.0, 0), "temperature 1": (1.0, 0), "top-p 0.95": (0.95, 0), "top-k 50": (1.0, 50)}
    for count in place.sizes.sampled:
        logits = torch.randn(count, vocab, dtype=torch.float32, device=device) * 4
        tokens = torch.empty(count, dtype=torch.int64, device=device)
        slots = torch.arange(count, dtype=torch.int32, device=device)
        unmasked, masks = torch.full_like(slots, -1), torch.zeros(1, -(-vocab // 32), dtype=torch.int32)
        rows = SampledRows(slots, slots + 1, unmasked, masks.to(device), torch.zeros_like(slots))
        for name, (top_p, top_k) in ways.items():
            p = greedy(count, vocab, 1, device)
            p.temperature.fill_(float(name != "greedy"))
            p.repetition.fill_(1)
            p.top_p.fill_(top_p)
            p.top_k.fill_(top_k)
            call = partial(_sample, logits, p, rows, tokens)
            yield place.against_bytes(f"sampling {count} × {vocab:,}, {name}", [call], 2 * logits.nbytes)


def _sample(logits: Tensor, p: Parameters, rows: SampledRows, tokens: Tensor) -> None:
    sample(logits, p, rows, edit(logits, p, rows), tokens)


def page_tables(place: Place) -> Iterator[Measurement]:
    """One short sequence whose block table has room for few tokens or for many, in a graph and launched. A
    kernel that loops to the width of the table is slower with the wide one; ours loops to the length."""
    context = min(64, place.sizes.table_tokens[0])
    cache = _cache(place, context)
    for room in place.sizes.table_tokens:
        call = _decode_call(place, cache, 1, context, room)
        for where, timed in (("in a graph", seconds), ("launched from Python", launched_s)):
            middle, least, most = (
                taken * 1e6
                for taken in timed([call] * (20 if place.device.type == "cuda" else 2), place.device)
            )
            yield Measurement(
                part="kernels",
                name=f"decode attention, 1 × {context} tokens, table for {room:,}, {where}",
                value=middle,
                unit="µs",
                spread=(least, most),
                at=At("tokens that a block table has room for", room, where),
            )


def _cache(place: Place, tokens: int) -> Tensor:
    sizes = place.sizes
    blocks = -(-tokens // sizes.block_size)
    return place.random(2, blocks, sizes.num_kv_heads, sizes.block_size, sizes.head_dim)


def _decode_call(place: Place, cache: Tensor, batch: int, context: int, room: int) -> Callable[[], object]:
    sizes, device = place.sizes, place.device
    used, width = -(-context // sizes.block_size), -(-room // sizes.block_size)
    tables = torch.zeros(batch, width, dtype=torch.int32, device=device)
    tables[:, :used] = torch.randperm(batch * used, device=device).int().view(batch, used)
    lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    query = place.random(batch, sizes.num_heads, sizes.head_dim)
    plan = DecodePlan(batch, 1024 + batch * -(-context // SPLIT), sizes.num_heads, sizes.head_dim, device)
    kv = PagedKV(cache)
    count = programs(_processors(device), kv)
    plan_decode(plan, lens, num_programs=count)
    return partial(decode_attention, query, kv, tables, lens, plan, Scores(0.1), num_programs=count)


GROUPS: dict[str, Callable[[Place], Iterator[Measurement]]] = dict(
    zip(
        KERNELS,
        (decodes, products, fewer_bits, many_rows, prompts, around, samplings, page_tables),
        strict=True,
    )
)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 1
