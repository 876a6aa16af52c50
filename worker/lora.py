"""Adapters: the LoRA adapters that a worker has loaded, and which of them each resident sequence has.

    wants.linears   where the model can be changed: module → a segment of a matrix
    LoraCheckpoint  module → A, B, scale                                        of each adapter
    load            the matrix ─▶ AdaptedMatrix(the matrix, product of all adapters)

A is cut by columns and B by rows, exactly as the rank's part of the matrix is: so a tensor-parallel group
needs no further communication, as a row layer's partial A x goes through B and is summed with the rest. A
model without adapters has none of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from protocol.adapters import adapter_folders
from protocol.errors import InternalError

from .batch import Int32s, Rows
from .checkpoint import FLOATS, TensorPart
from .kernels.lora import (
    NONE,
    AdaptedMatrix,
    AdapterRows,
    Factors,
    NativeProduct,
    Product,
    TorchProduct,
    padded,
)
from .lora_checkpoint import LoraCheckpoint, Pair
from .quantization.format import Cut
from .weights import Linear, Report, Wants

_REMEDY = "leave it out of target_modules, or merge the adapter into the model and serve that"


class Segment(NamedTuple):
    """This rank's part of one of the checkpoint's matrices."""

    name: str
    cuts: tuple[Cut, ...]

    @property
    def num_rows(self) -> int:
        return sum(cut.rows.length for cut in self.cuts)

    def parts(self, pair: Pair) -> list[TensorPart]:
        """Of an adapter for it: of A, then of B for each cut."""
        rank, columns = pair.rank, self.cuts[0].columns
        a = TensorPart(pair.a, (rank, columns.total), (0, columns.start), (rank, columns.length))
        rows = [cut.rows for cut in self.cuts]
        return [a, *(TensorPart(pair.b, (r.total, rank), (r.start, 0), (r.length, rank)) for r in rows)]


@dataclass
class Adapted:
    """A matrix that some adapter changes."""

    linear: Linear
    segments: list[Segment]
    pairs: list[list[Pair | None]] = field(default_factory=list)
    """Of each adapter, by segment."""


class Adapters:
    """Checked when made, before any weight is read; there once loaded."""

    def __init__(self, checkpoints: Sequence[LoraCheckpoint], wants: Wants, max_num_seqs: int) -> None:
        """Raises StartupError for what does not fit the model."""
        self.names = tuple(checkpoint.name for checkpoint in checkpoints)
        self.rows = AdapterRows()
        self.of_slot: Int32s = np.full(max_num_seqs, NONE, dtype=np.int32)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._checkpoints, self._wants = checkpoints, wants
        self._decodes = torch.full((2, max_num_seqs), NONE, dtype=torch.int32, device="cpu")
        """Numbers and order of the rows of a step that only decodes, at one place, as tapes expect them."""
        all_of_them = [Adapted(one, _segments(one.cuts)) for one in wants.linears]
        # An expert's rows are not the step's tokens in their order.
        all_of_them = [one for one in all_of_them if not _is_expert(one.segments[0].name)]
        known = {segment.name: segment for one in all_of_them for segment in one.segments}
        for checkpoint in checkpoints:
            for module, pair in checkpoint.pairs.items():
                _check(checkpoint, module, pair, known)
            for one in all_of_them:
                one.pairs.append([checkpoint.pairs.get(segment.name) for segment in one.segments])
        self._adapted = [one for one in all_of_them if any(map(any, one.pairs))]

    @classmethod
    def open(cls, given: Sequence[str], wants: Wants, max_num_seqs: int) -> Self | None:
        """Those of `--lora`; None if there are none. Raises StartupError."""
        folders = adapter_folders(given)
        if not folders:
            return None
        found = [LoraCheckpoint(name, Path(folder), wants) for name, folder in folders.items()]
        return cls(found, wants, max_num_seqs)

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's parts, once they are loaded."""
        return sum(map(self._num_numbers, self._adapted)) * self._wants.dtype.itemsize

    def fingerprint(self) -> list[str]:
        """What tells these adapters from others, but for their data."""
        return [
            f"{checkpoint.name} {module} {pair.rank} {pair.scale!r}"
            for checkpoint in self._checkpoints
            for module, pair in sorted(checkpoint.pairs.items())
        ]

    def load(self, report: Report) -> None:
        """Read all of them. To be called when the model's own weights are there."""
        for done, one in enumerate(self._adapted, 1):
            report("loading adapters", f"{done}/{len(self._adapted)}", done / len(self._adapted))
            one.linear.matrix = AdaptedMatrix(one.linear.matrix, self._product(one))

    # ── sequences and steps ─────────────────────────────────────────────────────────────────────

    def start(self, slot: int, name: str) -> None:
        """A sequence enters the batch; `name` is empty for the model as it is."""
        if name and name not in self._numbers:
            raise InternalError(f"the plan starts slot {slot} with the adapter {name!r}, which is not loaded")
        self.of_slot[slot] = self._numbers[name] if name else NONE

    def begin(self, rows: Rows) -> None:
        """The next products on the CPU are those of these rows' tokens."""
        numbers = self.of_slot[rows.slots]
        self.rows.some = bool((numbers != NONE).any())
        if rows.num_decodes == len(rows.slots):
            here = self._decodes[:, : len(numbers)]
            here.numpy()[:] = numbers, numbers.argsort(kind="stable")
            self.rows.numbers, self.rows.order = here
        elif self.rows.some:
            of_tokens = numbers[rows.token_rows]
            self.rows.numbers = torch.from_numpy(of_tokens)
            self.rows.order = torch.from_numpy(of_tokens.argsort(kind="stable").astype(np.int32))

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    def _num_numbers(self, one: Adapted) -> int:
        columns = one.linear.cuts[0].columns.length
        if self._wants.device is not None:
            rank = padded(max(pair.rank for pairs in one.pairs for pair in pairs if pair is not None))
            rows = sum(segment.num_rows for segment in one.segments)
            return len(one.pairs) * rank * (len(one.segments) * columns + rows)
        return sum(
            pair.rank * (segment.num_rows + columns)
            for pairs in one.pairs
            for segment, pair in zip(one.segments, pairs, strict=True)
            if pair is not None
        )

    def _product(self, one: Adapted) -> Product:
        wants, segments = self._wants, [segment.num_rows for segment in one.segments]
        updates = [
            [self._factors(checkpoint, *entry) for entry in zip(one.segments, pairs, strict=True)]
            for checkpoint, pairs in zip(self._checkpoints, one.pairs, strict=True)
        ]
        if wants.device is not None:
            return wants.device.lora(segments, updates, self.rows)
        if wants.kernels is not None:
            return NativeProduct(wants.kernels, segments, updates, self.rows)
        return TorchProduct(segments, updates, self.rows)

    def _factors(self, checkpoint: LoraCheckpoint, segment: Segment, pair: Pair | None) -> Factors | None:
        if pair is None:
            return None
        a, *b = (checkpoint.read(part).to(self._wants.dtype) for part in segment.parts(pair))
        return Factors(a, torch.cat(b), pair.scale)


def _segments(cuts: Sequence[Cut]) -> list[Segment]:
    return [Segment(name, tuple(same)) for name, same in groupby(cuts, key=lambda cut: cut.name)]


def _is_expert(module: str) -> bool:
    return ".experts." in module


def _check(checkpoint: LoraCheckpoint, module: str, pair: Pair, known: Mapping[str, Segment]) -> None:
    """Raises StartupError."""
    segment = known.get(module)
    if segment is None:
        kind = "an expert, which" if _is_expert(module) else "none of this model's linear layers, which alone"
        verb = (
            "adapters cannot change here"
            if _is_expert(module)
            else ("adapters can change here (neither embeddings, nor an output head, nor a router)")
        )
        raise checkpoint.refused(f"{module!r} is {kind} {verb}", _REMEDY)
    for part in segment.parts(pair):
        stored = checkpoint.stored[part.name]
        if stored.shape != part.shape:
            raise checkpoint.refused(
                f"{part.name!r} has the shape {list(stored.shape)}; this model needs {list(part.shape)}",
                "use the model that the adapter was trained for",
            )
        if stored.dtype not in FLOATS:
            raise checkpoint.refused(
                f"{part.name!r} is stored as {str(stored.dtype).removeprefix('torch.')}", "save it as float32"
            )
