"""The Triton kernels as layers call them: DeviceKernels of ../device.py, and the steps that they are given.

    TritonPlanner  where a step's inputs lie on the device → TritonStep, one for each KV group
    layer          rope_kv → decode_attention of the first rows, prefill_attention of the others

Where a row's numbers must not depend on its company (`invariant`), all rows go through prefill_attention: a
token is computed there by the same sums whether it comes alone, with others, or in a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import StartupError
from protocol.sampling import MAX_LOGPROBS

from ...kv_layout import Window
from ..activation import Activation
from ..device import AttentionKernel, ExpertsKernel, NormKernel, Projection, Routing
from ..lora import AdapterRows, Product, Update
from ..matmul import Matrix
from ..native_attention import HeadNorms as LayerHeadNorms
from ..paged_kv import PagedKV
from .decode_attention import NO_WINDOW, SPLIT, DecodePlan, Scores, decode_attention, plan_decode, programs
from .logprobs import top_logprobs
from .lora import TritonProduct
from .matmul import BLOCK
from .matrices import TritonMatrices, fp8_lacks
from .prefill_attention import prefill_attention
from .projection import ACTIVATIONS, TritonNorm, project
from .rope_kv import HeadNorms, rope_kv
from .sparse_mlp import TritonExperts
from .step_rows import DecodeRows


class TritonKernels:
    """DeviceKernels of an NVIDIA GPU; of the CPU, where Triton interprets."""

    def __init__(self, device: torch.device, *, invariant: bool = False, pdl: bool = False) -> None:
        """`pdl`: launches of a step overlap, see dependent_launch.py."""
        self.device, self.invariant, self.pdl = device, invariant, pdl
        self.matrices = TritonMatrices(device, invariant=invariant, pdl=pdl)
        self._processors = 1
        if device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(device).multi_processor_count

    def check_cache(self, stored: torch.dtype) -> None:
        if stored == torch.float8_e4m3fn and (here := fp8_lacks(self.device)):
            raise StartupError(
                f"--kv-cache-dtype fp8 needs a GPU of compute capability 8.9; this one has {here}",
                hint="use --kv-cache-dtype int8",
            )

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> NormKernel:
        return TritonNorm(weight, bias, eps)

    @property
    def project(self) -> Projection:
        return project

    def activation(self, function: Activation) -> Activation:
        return ACTIVATIONS[function]

    def attention(self, num_heads: int, scale: float, norms: LayerHeadNorms | None) -> AttentionKernel:
        heads = None if norms is None else HeadNorms(norms.query, norms.key, norms.eps)
        return TritonAttention(num_heads, scale, heads, self._processors, pdl=self.pdl)

    def top_logprobs(self, logits: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """TopLogprobs, see ../../logprobs.py. One kernel for all widths that may be asked for."""
        logits = logits.contiguous()  # a vocabulary that ranks do not divide is cut out
        chosen, values, ids = top_logprobs(logits, tokens, min(MAX_LOGPROBS, logits.shape[1]))
        return chosen, values[:, :width].contiguous(), ids[:, :width].contiguous()

    def lora(self, segments: Sequence[int], updates: Sequence[Update], rows: AdapterRows) -> Product:
        return TritonProduct(segments, updates, rows, self.device)

    def check_experts(self, blocks: tuple[int, int] | None) -> None:
        if blocks not in (None, (BLOCK, BLOCK)):
            raise StartupError(
                f"experts with scales of {blocks[0]} × {blocks[1]} have no kernel for GPUs; "
                f"those of rows, of groups and of {BLOCK} × {BLOCK} have",
                hint="use a smaller --tensor-parallel-size, another checkpoint, or --device cpu",
            )

    def experts(
        self, gate_up: Sequence[Matrix], down: Sequence[Matrix], activation: Activation, routing: Routing
    ) -> ExpertsKernel:
        return TritonExperts(gate_up, down, activation, routing, invariant=self.invariant, pdl=self.pdl)


class Part(Protocol):
    """Some of a step's rows, which follow each other."""

    @property
    def num_tokens(self) -> int: ...

    def attend(self, query: Tensor, kv: PagedKV, scores: Scores, processors: int) -> Tensor:
        """query [num_tokens, num_heads, head_dim] → [num_tokens, num_heads * head_dim]"""


class Room:
    """Of decode attention: made for the largest step when its first layer comes, and then used by all."""

    def __init__(self, limits: "Limits", device: torch.device, *, pdl: bool) -> None:
        self.pdl = pdl
        self._limits, self._device = limits, device
        self._plans: dict[tuple[int, int, int], DecodePlan] = {}

    def plan(self, group: int, num_heads: int, head_dim: int) -> DecodePlan:
        """Of a KV group. All share the memory for partial results, as one layer attends at a time."""
        key = (group, num_heads, head_dim)
        if key not in self._plans:
            alike = [plan for (_, *shape), plan in self._plans.items() if shape == [num_heads, head_dim]]
            rows, items, _ = self._limits
            self._plans[key] = (
                alike[0].sharing() if alike else DecodePlan(rows, items, num_heads, head_dim, self._device)
            )
        return self._plans[key]


@dataclass(slots=True)
class Decodes:
    """A Part: rows with one query each. Made anew for each step and KV group."""

    tables: Tensor
    """int32 [n, width]"""
    lens: Tensor
    """int32 [n]"""
    room: Room
    group: int
    _plan: DecodePlan | None = None
    """Once it is filled."""

    @property
    def num_tokens(self) -> int:
        return len(self.lens)

    def attend(self, query: Tensor, kv: PagedKV, scores: Scores, processors: int) -> Tensor:
        plan = self.room.plan(self.group, query.shape[1], query.shape[2])
        count = programs(processors, kv)
        if plan is not self._plan:
            plan_decode(plan, self.lens, scores.window, num_programs=count)
            self._plan = plan
        return decode_attention(
            query, kv, self.tables, self.lens, plan, scores, num_programs=count, pdl=self.room.pdl
        )


@dataclass(frozen=True, slots=True)
class Chunks:
    """A Part: rows with any number of queries."""

    num_tokens: int
    query_start: Tensor
    """int32 [n + 1]"""
    tables: Tensor
    lens: Tensor
    most_rows: int

    def attend(self, query: Tensor, kv: PagedKV, scores: Scores, processors: int) -> Tensor:
        return prefill_attention(
            query, kv, self.tables, self.query_start, self.lens, scores, most_rows=self.most_rows
        )


class TritonStep:
    """A step's layout on the device, for the layers of one KV group. Made anew for each step."""

    def __init__(self, kv_slots: Tensor, rows: Tensor, window: int, parts: Sequence[Part]) -> None:
        """`kv_slots` int64 [tokens]; `rows` int64, 0 … tokens - 1: of each token in the step's rotations."""
        self.kv_slots, self.rows, self.window, self.parts = kv_slots, rows, window, parts
        self._rotations: Tensor | None = None

    def rotations(self, cos: Tensor | None, sin: Tensor | None) -> Tensor | None:
        """[tokens, 2, rotary_dim], put together with the step's first layer."""
        if self._rotations is None and cos is not None and sin is not None:
            self._rotations = torch.cat((cos, sin), 1)
        return self._rotations


class TritonAttention:
    """AttentionKernel of one layer."""

    def __init__(
        self, num_heads: int, scale: float, norms: HeadNorms | None, processors: int, *, pdl: bool
    ) -> None:
        self._num_heads, self._scale, self._norms = num_heads, scale, norms
        self._processors, self._pdl = processors, pdl

    def __call__(
        self, qkv: Tensor, kv: PagedKV, step: TritonStep, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        rotations = step.rotations(cos, sin)
        queries = rope_kv(
            qkv, step.rows, step.kv_slots, rotations, kv, self._num_heads, self._norms, pdl=self._pdl
        )
        scores = Scores(self._scale, step.window)
        mixed, begin = [], 0
        for part in step.parts:
            query = queries[begin : begin + part.num_tokens]
            mixed.append(part.attend(query, kv, scores, self._processors))
            begin += part.num_tokens
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class Limits(NamedTuple):
    """Of any step."""

    rows: int
    """That decode."""
    tokens: int
    items: int
    """Splits of decode attention, see decode_attention.py; longer sequences take other steps."""


class ChunkInputs(NamedTuple):
    """Of the rows of a mixed step that do not decode, on the device."""

    query_start: Tensor
    """int32 [n + 1]"""
    tables: Tensor
    """int32 [groups, n, width]"""
    lens: Tensor
    """int32 [n]"""
    kv_slots: Sequence[Tensor]
    """int64 [tokens], of each group"""


class TritonPlanner:
    """Lays out steps. Owns the room that decode attention needs."""

    def __init__(self, kernels: TritonKernels, windows: Sequence[Window], limits: Limits) -> None:
        """`windows`: of each KV group."""
        self._invariant, self._limits = kernels.invariant, limits
        self._windows = [NO_WINDOW if window is None else window for window in windows]
        self._room = Room(limits, kernels.device, pdl=kernels.pdl)
        self._rows = torch.arange(limits.tokens, device=kernels.device)
        self._starts = torch.arange(limits.rows + 1, dtype=torch.int32, device=kernels.device)

    def fits(self, context_lens: NDArray[np.int64]) -> bool:
        """Whether there is room to decode sequences so long in one step."""
        rows, _, items = self._limits
        padding = rows - len(context_lens)  # each of them has an item, too
        return self._invariant or int((-(-context_lens // SPLIT)).sum()) + padding <= items

    def plan(
        self, inputs: DecodeRows, count: int, chunks: ChunkInputs | None = None, *, roomy: bool = True
    ) -> list[TritonStep]:
        """A step of the first `count` rows, and of chunks after them, for each KV group. Looks only at where
        the inputs are, not at what they are. Not `roomy`: rows that do not fit take prefill's slower way."""
        found = []
        for group, window in enumerate(self._windows):
            kv_slots = inputs.kv_slots[group, :count]
            parts: list[Part] = [self._decodes(inputs, group, count, roomy)] if count else []
            if chunks is not None:
                new, tables = chunks.kv_slots[group], chunks.tables[group]
                kv_slots = torch.cat((kv_slots, new)) if count else new
                most = self._limits.rows
                parts.append(Chunks(len(new), chunks.query_start, tables, chunks.lens, most))
            assert len(kv_slots) <= len(self._rows), "a step of more tokens than any may have"
            found.append(TritonStep(kv_slots, self._rows[: len(kv_slots)], window, parts))
        return found

    def _decodes(self, inputs: DecodeRows, group: int, count: int, roomy: bool) -> Part:
        tables, lens = inputs.block_tables[group, :count], inputs.context_lens[:count]
        if self._invariant or not roomy:
            return Chunks(count, self._starts[: count + 1], tables, lens, self._limits.rows)
        return Decodes(tables, lens, self._room, group)
