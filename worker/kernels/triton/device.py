"""The Triton kernels as layers call them: DeviceKernels of ../device.py.

    plan    a step's layout → device tensors, once; rows that decode and rows with chunks apart
    layer   rope_kv → decode_attention of the first rows, prefill_attention of the others

The layout of a step comes from the host, as it does for steps that are not captured in a graph. Weights are
of 32 or 16 bits here; the products on fewer bits (matmul.py, int4_matmul.py) are not reached from layers yet.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kv_layout import Window
from .. import activation as torch_activation
from ..activation import Activation
from ..attention import StepLayout
from ..device import AttentionKernel, NormKernel, StepPlanner
from ..matmul import Matrix
from ..native_attention import HeadNorms as LayerHeadNorms
from .activation import activate
from .decode_attention import NO_WINDOW, SPLIT, DecodePlan, Scores, decode_attention, plan_decode
from .matmul import matmul
from .norm import norm
from .paged import PagedKV
from .prefill_attention import prefill_attention
from .rope_kv import HeadNorms, rope_kv

_ACTIVATIONS: dict[Activation, Activation] = {
    torch_activation.silu_and_multiply: activate,
    torch_activation.gelu_tanh_and_multiply: partial(activate, gelu=True),
    torch_activation.gelu_tanh: partial(activate, gelu=True, gated=False),
}


class TritonKernels:
    """DeviceKernels of an NVIDIA GPU; of the CPU, where Triton interprets."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._processors = 1
        if device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(device).multi_processor_count

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> NormKernel:
        def apply(x: Tensor, add: Tensor | None) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            y, _ = norm(rows, weight, eps, bias=bias)
            return y.view(x.shape) if add is None else y.view(x.shape) + add

        return apply

    def activation(self, function: Activation) -> Activation:
        return _ACTIVATIONS[function]

    def attention(self, num_heads: int, scale: float, norms: LayerHeadNorms | None) -> AttentionKernel:
        heads = None if norms is None else HeadNorms(norms.query, norms.key, norms.eps)
        return TritonAttention(num_heads, scale, heads, self._processors)

    def matrix(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix:
        weight = torch.cat([part.to(self.device) for part in parts])
        return TritonMatrix(weight, None if bias is None else bias.to(self.device))

    def planner(self, block_size: int, windows: Sequence[Window]) -> StepPlanner:
        return TritonPlanner(self.device, block_size, windows)


class TritonMatrix:
    """A Matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.shape = (weight.shape[0], weight.shape[1])

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        add = None if add is None else add.contiguous()
        return matmul(x, self.weight, bias=self.bias, add=add, out_dtype=out_dtype)


class TritonStep:
    """A step's layout on the device, for the layers of one KV group."""

    def __init__(
        self, planner: "TritonPlanner", layout: StepLayout, tables: NDArray[np.int32], window: Window
    ) -> None:
        def put(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(planner.device, dtype)

        size, positions = planner.block_size, layout.positions
        blocks = tables[layout.token_rows, positions // size].astype(np.int64)
        self.slots = put(blocks * size + positions % size, torch.int64)
        self.rows = torch.arange(len(positions), device=planner.device)
        """Of each token in the step's cosines and sines."""
        self.tables = put(tables, torch.int32)
        self.lens = put(layout.context_lens, torch.int32)
        self.num_decodes = layout.num_decodes
        self.window = NO_WINDOW if window is None else window
        query_start = layout.query_start[layout.num_decodes :] - layout.num_decodes
        self.query_start = put(query_start, torch.int32)
        lens = layout.context_lens[: layout.num_decodes]
        first = np.maximum(lens - self.window, 0) // SPLIT
        self._num_items = int((-(-lens // SPLIT) - first).sum())
        self._plan: DecodePlan | None = None

    def decode_plan(self, num_heads: int, head_dim: int) -> DecodePlan:
        """Of the rows that decode, made with the step's first layer."""
        if self._plan is None:
            device = self.lens.device
            self._plan = DecodePlan(self.num_decodes, self._num_items, num_heads, head_dim, device)
            plan_decode(self._plan, self.lens[: self.num_decodes], self.window)
        return self._plan


class TritonPlanner:
    def __init__(self, device: torch.device, block_size: int, windows: Sequence[Window]) -> None:
        self.device, self.block_size, self.windows = device, block_size, windows

    def plan(self, layout: StepLayout, block_tables: NDArray[np.int32]) -> Sequence[TritonStep]:
        return [
            TritonStep(self, layout, tables, window)
            for window, tables in zip(self.windows, block_tables, strict=True)
        ]

    def release(self) -> None:
        pass

    needs_blank_blocks = False


class TritonAttention:
    """AttentionKernel of one layer."""

    def __init__(self, num_heads: int, scale: float, norms: HeadNorms | None, processors: int) -> None:
        self._num_heads, self._scale, self._norms = num_heads, scale, norms
        self._processors = processors

    def __call__(
        self, qkv: Tensor, cache: Tensor, step: TritonStep, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        kv, decodes = PagedKV(cache), step.num_decodes
        table = None if cos is None or sin is None else torch.cat((cos, sin), 1)
        queries = rope_kv(qkv, step.rows, step.slots, table, kv, self._num_heads, self._norms)
        scores = Scores(self._scale, step.window)
        mixed = []
        if decodes:
            plan = step.decode_plan(self._num_heads, qkv.shape[2])
            programs = max(2 * self._processors // cache.shape[2], 1)
            lens, tables = step.lens[:decodes], step.tables[:decodes]
            mixed.append(
                decode_attention(queries[:decodes], kv, tables, lens, plan, scores, num_programs=programs)
            )
        if decodes < len(step.lens):
            lens, tables = step.lens[decodes:], step.tables[decodes:]
            mixed.append(prefill_attention(queries[decodes:], kv, tables, step.query_start, lens, scores))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
