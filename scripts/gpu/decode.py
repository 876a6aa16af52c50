"""A decode step of a published shape with random weights, of Triton kernels alone, in one CUDA graph:
embedding → layers → head → the likeliest token → the inputs of the next step.

    layer   norm · qkv · (head norms, rotation, KV write) · plan · attend · merge · o + residual
            norm · gate and up · activation · down + residual

This is how fast the kernels can serve, without the engine and its host. It is a benchmark of kernels, not the
worker's path: the worker does not compute on GPUs yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.graphs import CudaDevice, DecodeGraphs
from worker.kernels.triton import int4_matmul
from worker.kernels.triton.activation import activate
from worker.kernels.triton.advance import DecodeInputs, advance
from worker.kernels.triton.decode_attention import SPLIT, DecodePlan, Scores, decode_attention, plan_decode
from worker.kernels.triton.matmul import matmul
from worker.kernels.triton.norm import norm
from worker.kernels.triton.paged import PagedKV
from worker.kernels.triton.rope_kv import HeadNorms, rope_kv

from .floors import SHAPES, Ceilings, Shape, decode_floor_s
from .results import Measurement, median

CUDA = torch.device("cuda")
BLOCK_SIZE = 16
EPS = 1e-6
STEPS = 32
"""Timed at a time, so that the context hardly grows."""
GOALS = {
    ("Llama-3.1-8B", "bf16"): 0.90,
    ("Llama-3.1-8B", "fp8"): 0.80,
    ("Llama-3.1-8B", "int4"): 0.70,
    ("Qwen3-4B", "bf16"): 0.85,
    ("Llama-3.2-1B", "bf16"): 0.75,
    ("Qwen3-0.6B", "bf16"): 0.50,
}
"""Of one sequence, as fractions of the floor."""

Multiply = Callable[[Tensor, Tensor | None], Tensor]
"""(x, summand) → x Wᵀ + summand"""


def matrix(n: int, k: int, kind: str, dtype: torch.dtype, device: torch.device) -> Multiply:
    """Random, of the scale that keeps activations in range."""
    weight = torch.randn(n, k, device=device, dtype=dtype) * k**-0.5
    if kind == "bf16":
        return lambda x, add: matmul(x, weight, add=add)
    if kind == "int4":
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device)
        packed = int4_matmul.pack(codes)
        scales = torch.full((n, k // 128), k**-0.5 / 4.6, device=device)
        return lambda x, add: int4_matmul.int4_matmul(x, packed, scales, None, 128, add=add)
    limit, stored = (127.0, torch.int8) if kind == "int8" else (448.0, torch.float8_e4m3fn)
    per_row = weight.abs().amax(1).float() / limit
    numbers = (weight / per_row.unsqueeze(1)).clamp(-limit, limit).to(stored)
    return lambda x, add: matmul(x, numbers, w_scales=per_row, add=add)


def rotation(max_len: int, dim: int) -> Tensor:
    """[max_len, 2, dim]: cosines, and sines with the rotation's sign."""
    angle = torch.arange(max_len)[:, None] / 1e4 ** (torch.arange(0, dim, 2) / dim)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)


@dataclass(slots=True)
class Layer:
    input_norm: Tensor
    qkv: Multiply
    head_norms: HeadNorms | None
    o: Multiply
    post_norm: Tensor
    gate_up: Multiply
    down: Multiply
    kv: PagedKV


class Step:
    """The buffers and weights of decode steps of up to `rows` sequences, each with a table of its own."""

    def __init__(
        self, shape: Shape, kind: str, rows: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, size, dim = shape, shape.hidden_size, shape.head_dim
        blocks = -(-max_len // BLOCK_SIZE)
        self.null_slot = rows * blocks * BLOCK_SIZE
        self.inputs = DecodeInputs.empty(rows, blocks, self.null_slot, device)
        self.inputs.block_tables.copy_(torch.randperm(rows * blocks).view(rows, blocks))
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        items = rows * -(-max_len // SPLIT)
        self.plan = DecodePlan(rows, items, shape.num_heads, dim, device)
        self.num_programs = max(2 * _processors(device) // shape.num_kv_heads, 1)
        self.table = rotation(max_len, dim).to(device, dtype)
        self.embedding = torch.randn(shape.vocab_size, size, device=device, dtype=dtype)

        def ones(length: int) -> Tensor:
            return torch.ones(length, device=device, dtype=dtype)

        def layer() -> Layer:
            cache = torch.randn(2, rows * blocks + 1, shape.num_kv_heads, BLOCK_SIZE, dim, device=device)
            return Layer(
                ones(size),
                matrix(shape.qkv_rows, size, kind, dtype, device),
                HeadNorms(ones(dim), ones(dim), EPS) if shape.head_norms else None,
                matrix(size, shape.num_heads * dim, kind, dtype, device),
                ones(size),
                matrix(2 * shape.intermediate_size, size, kind, dtype, device),
                matrix(size, shape.intermediate_size, kind, dtype, device),
                PagedKV(cache.to(dtype)),
            )

        self.layers = [layer() for _ in range(shape.num_layers)]
        self.final_norm = ones(size)
        self.head = matrix(shape.vocab_size, size, "bf16", dtype, device)

    def begin(self, rows: int, context: int) -> None:
        """The first `rows` sequences have `context` tokens, the newest of which is computed next."""
        inputs = self.inputs
        for part in (inputs.positions, inputs.context_lens, inputs.token_ids):
            part.zero_()
        inputs.slots.fill_(self.null_slot)
        inputs.positions[:rows], inputs.context_lens[:rows] = context - 1, context
        place = inputs.block_tables[:rows, (context - 1) // BLOCK_SIZE].long() * BLOCK_SIZE
        inputs.slots[:rows] = place + (context - 1) % BLOCK_SIZE

    def __call__(self, rows: int) -> None:
        inputs, shape = self.inputs.first(rows), self.shape
        scores = Scores(shape.head_dim**-0.5)
        plan_decode(self.plan, inputs.context_lens)
        x = self.embedding.index_select(0, inputs.token_ids)
        for layer in self.layers:
            y, _ = norm(x, layer.input_norm, EPS)
            qkv = layer.qkv(y, None).view(rows, -1, shape.head_dim)
            queries = rope_kv(
                qkv, inputs.positions, inputs.slots, self.table, layer.kv, shape.num_heads, layer.head_norms
            )
            mixed = decode_attention(
                queries, layer.kv, inputs.block_tables, inputs.context_lens, self.plan, scores,
                num_programs=self.num_programs,
            )  # fmt: skip
            x = layer.o(mixed, x)
            y, _ = norm(x, layer.post_norm, EPS)
            x = layer.down(activate(layer.gate_up(y, None)), x)
        y, _ = norm(x, self.final_norm, EPS)
        torch.argmax(self.head(y, None), dim=-1, out=self.tokens[:rows])
        advance(inputs, self.tokens[:rows], BLOCK_SIZE, self.null_slot)


def single_stream(ceilings: Ceilings) -> Iterator[Measurement]:
    """One sequence of 1,024 tokens, every shape, every kind of weights."""
    kinds = ["bf16", "int4", "int8"]
    if torch.cuda.get_device_capability() >= (8, 9):
        kinds.insert(1, "fp8")
    for name in ("Llama-3.1-8B", "Qwen3-0.6B", "Llama-3.2-1B", "Qwen3-4B"):
        for kind in kinds:
            yield _measure("decode", SHAPES[name], kind, 1, 1024, ceilings)


def batches(ceilings: Ceilings) -> Iterator[Measurement]:
    """Steady decode of many sequences of 1,024 tokens."""
    for name, batch in (("Llama-3.1-8B", 32), ("Qwen3-0.6B", 256), ("Llama-3.1-8B", 256)):
        yield _measure("batches", SHAPES[name], "bf16", batch, 1024, ceilings)


def _measure(
    group: str, shape: Shape, kind: str, batch: int, context: int, ceilings: Ceilings
) -> Measurement:
    torch.manual_seed(0)
    step = Step(shape, kind, batch, context + 16 * STEPS, CUDA, torch.bfloat16)
    device = CudaDevice()
    torch.cuda.synchronize()
    graphs = DecodeGraphs(device, step, (batch,))
    graphs.capture()
    step.begin(batch, context)
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(device.main.stream)
        for _ in range(STEPS):
            graphs.run(batch)
        end.record(device.main.stream)
        end.synchronize()
        times.append(begin.elapsed_time(end) / STEPS)
    floor = decode_floor_s(shape, ceilings, batch=batch, context=context, weights=kind) * 1e3
    name = f"{shape.name} {kind}, {batch} × {context} tokens, graph"
    goal = GOALS.get((shape.name, kind)) if batch == 1 else None
    spread = (min(times), max(times))
    return Measurement(group, name, median(times), "ms/step", "lower", floor, goal, spread)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1
