"""Which checkpoint tensors the layers want, and how they get there. Knows no file format and no model.

Layers declare, while they are built, what they want and into which tensor it goes; merged layers
declare several (q, k, v → one matrix). Then everything is checked by name and shape, and only then data
is read: each rank reads its own part.

    Wants
     └─ Scope "model.layers.0.self_attn."
         └─ want("q_proj.weight", shape of the whole, into = rows 0…n of the merged matrix, starts)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from zlib import crc32

import torch
from torch import Tensor

from protocol.errors import StartupError

from .checkpoint import StoredTensor
from .kernels.cpu.library import Library

Report = Callable[[str, str, float | None], None]
"""(phase, detail, fraction done or None when unknown)"""


class Source(Protocol):
    """A checkpoint, as far as loading goes."""

    tensors: dict[str, StoredTensor]

    def read(self, name: str, first_row: int, num_rows: int) -> Tensor: ...


class Want(NamedTuple):
    """A tensor of the checkpoint, or a part of it that this rank holds."""

    name: str
    shape: tuple[int, ...]
    """Of the whole, as the checkpoint has it."""
    into: Tensor
    starts: tuple[int, ...]
    """Where the part begins in the whole; its extent is the shape of `into`."""


@dataclass
class Wants:
    """What the layers of one model declared."""

    dtype: torch.dtype
    tensors: dict[str, Want] = field(default_factory=dict)
    """By name; further parts of one tensor by its name and where they start."""
    surplus: set[str] = field(default_factory=set)
    """Names that a checkpoint may have and that are not needed."""
    finishers: list[Callable[[], None]] = field(default_factory=list)
    base_prefix: str = ""
    """A checkpoint of the bare model, without its head, leaves this out of all names."""
    kernels: Library | None = None
    """In C, for layers that have a use for them; None: torch's."""

    def scope(self, prefix: str = "") -> "Scope":
        return Scope(self, prefix)

    def num_bytes(self) -> int:
        """Memory of everything wanted."""
        return sum(want.into.nbytes for want in self.tensors.values())


class Scope:
    """A place in the checkpoint's tree of names. `scope / "norm"` is the place below it."""

    def __init__(self, wants: Wants, prefix: str) -> None:
        self._wants = wants
        self._prefix = prefix
        self.dtype = wants.dtype
        self.kernels = wants.kernels

    def __truediv__(self, name: str) -> "Scope":
        return Scope(self._wants, f"{self._prefix}{name}.")

    def want(self, name: str, shape: tuple[int, ...], into: Tensor, starts: tuple[int, ...] = ()) -> None:
        """Load the part of `name` that begins at `starts` (default: its origin) into `into`.

        Several parts of one tensor may be wanted, each by a call of its own.
        """
        want = Want(self._prefix + name, shape, into, starts or (0,) * len(shape))
        key, tensors = want.name, self._wants.tensors
        if key in tensors:
            key = f"{want.name} from {want.starts}"
            assert want.starts != tensors[want.name].starts, key
            assert key not in tensors, key
        tensors[key] = want

    def allow(self, name: str) -> None:
        """A checkpoint may have this tensor; it is not read."""
        self._wants.surplus.add(self._prefix + name)

    def after_loading(self, finish: Callable[[], None]) -> None:
        """Run once all tensors are in place."""
        self._wants.finishers.append(finish)


def load(wants: Wants, tensors: Iterable[tuple[str, Tensor]], report: Report) -> None:
    """Put ready tensors where they are wanted, then let the layers convert them."""
    count = len(wants.tensors)
    for done, (name, tensor) in enumerate(tensors):
        report("loading weights", f"{done + 1}/{count} tensors", (done + 1) / count)
        wants.tensors[name].into.copy_(tensor)
    wants.tensors.clear()  # so that a converted weight's original is freed one by one
    for done, finish in enumerate(wants.finishers):
        report("preparing weights", f"{done + 1}/{len(wants.finishers)}", (done + 1) / len(wants.finishers))
        finish()


def stored_parts(wants: Wants, source: Source) -> Iterator[tuple[str, Tensor]]:
    """The wanted parts of a checkpoint's tensors. Raises StartupError before anything is read."""
    stored = {name: name for name in source.tensors}
    if not any(name.startswith(wants.base_prefix) for name in stored):
        stored = {wants.base_prefix + name: name for name in stored}
    _check(wants, {name: source.tensors[own] for name, own in stored.items()})
    for key, want in wants.tensors.items():
        part = source.read(stored[want.name], want.starts[0], want.into.shape[0])
        for dim in range(1, part.dim()):
            part = part.narrow(dim, want.starts[dim], want.into.shape[dim])
        yield key, part


def random_parts(wants: Wants) -> Iterator[tuple[str, Tensor]]:
    """Small random weights, the same on every rank: norms are 1 and biases 0."""
    for key, want in wants.tensors.items():
        if len(want.shape) == 1:
            yield key, torch.full_like(want.into, 0.0 if want.name.endswith("bias") else 1.0)
            continue
        generator = torch.Generator().manual_seed(crc32(want.name.encode()))
        whole = torch.randn(want.shape, generator=generator) / math.sqrt(want.shape[-1])
        for dim, start in enumerate(want.starts):
            whole = whole.narrow(dim, start, want.into.shape[dim])
        yield key, whole


def _check(wants: Wants, stored: dict[str, StoredTensor]) -> None:
    wanted = {want.name for want in wants.tensors.values()}
    missing = [want.name for want in wants.tensors.values() if want.name not in stored]
    if missing:
        raise StartupError(
            f"the checkpoint lacks {_listed(missing)}", hint="finish the download, or check config.json"
        )
    extra = [n for n in stored if n not in wanted and n not in wants.surplus]
    if extra:
        raise StartupError(
            f"the checkpoint has tensors that its architecture does not use: {_listed(extra)}",
            hint="check `architectures` in config.json",
        )
    for want in wants.tensors.values():
        found = stored[want.name]
        if found.shape != want.shape:
            raise StartupError(
                f"{want.name!r} has the shape {list(found.shape)}; config.json implies {list(want.shape)}"
            )
        if found.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise StartupError(
                f"{want.name!r} is stored as {str(found.dtype).removeprefix('torch.')}; "
                "unquantized weights are float32, bfloat16 or float16",
                hint="use an unquantized checkpoint",
            )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
