"""Which tensors of a checkpoint the layers want, and how they get there. Knows no file and no model.

Layers declare, while they are built, what they want and who takes it; a merged layer takes several tensors
at once (q, k, v → one matrix). Then everything is checked by name, type and shape, and only then data is
read, one layer's after the other's, so that the memory taken is what is loaded and one layer more.

    Wants
     └─ Scope "model.layers.0.self_attn."
         ├─ want("q_norm.weight", shape of the whole, into = a tensor, starts)
         └─ request([part of q_proj.weight, part of k_proj.weight, …], take)
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from zlib import crc32

import torch
from torch import Tensor

from protocol.errors import StartupError

from .checkpoint import StoredTensor, TensorPart
from .kernels.cpu.library import Library
from .kernels.device import DeviceKernels
from .kernels.matmul import Matrix
from .kernels.matrices import Matrices, TorchMatrices
from .kernels.native_matrices import NativeMatrices, in_own_memory
from .quantization.format import Cut, Formats
from .quantization.unquantized import Unquantized
from .weight_image import WeightImage

Report = Callable[[str, str, float | None], None]
"""(phase, detail, fraction done or None when unknown)"""
Take = Callable[[Sequence[Tensor]], None]
Read = Callable[[TensorPart], Tensor]


class Source(Protocol):
    """A checkpoint, as far as loading goes."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...

    def read(self, part: TensorPart) -> Tensor: ...


class Linear(Protocol):
    """A matrix whose product LoRA adapters can change: by putting another one in its place, once loaded."""

    @property
    def cuts(self) -> Sequence[Cut]:
        """Of the checkpoint's matrices, below one another."""

    matrix: Matrix


class Request(NamedTuple):
    """Tensors that are taken together."""

    parts: tuple[TensorPart, ...]
    take: Take
    """Given the parts, in order. It keeps only those that are marked so, and writes to none of them."""
    num_bytes: int
    """Of memory, once they are taken."""
    copied: bool
    """Parts that are marked as kept are only read, too: what is taken is a copy of them."""


@dataclass
class Wants:
    """What the layers of one model declared."""

    dtype: torch.dtype
    formats: Formats = field(default_factory=Unquantized)
    """Of the checkpoint's matrices."""
    kernels: Library | None = None
    """In C, for layers that have a use for them; None: torch's."""
    device: DeviceKernels | None = None
    """Of the device that the model is built for; None: the CPU"""
    image: WeightImage | None = None
    """Where matrices of the kernels in C are found, or put; None: in this process' memory"""
    requests: list[Request] = field(default_factory=list)
    surplus: set[str] = field(default_factory=set)
    """Names that a checkpoint may have and that are not needed."""
    finishers: list[Callable[[], None]] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    base_prefix: str = ""
    """A checkpoint of the bare model, without its head, leaves this out of all names."""
    headless: bool = False
    """The checkpoint has no output head: its logits mean nothing."""
    view: Callable[[Source], Source] = field(default=lambda source: source)
    """How the model sees a checkpoint whose names and shapes are not its own."""

    def scope(self, prefix: str = "") -> "Scope":
        return Scope(self, prefix)

    def matrices(self) -> Matrices:
        """Of the device, or the CPU."""
        if self.device is not None:
            return self.device.matrices
        if self.kernels is None:
            return TorchMatrices()
        return NativeMatrices(self.kernels, in_own_memory if self.image is None else self.image.allocate)

    def parts(self) -> Iterator[TensorPart]:
        """Of all requests."""
        return (part for request in self.requests for part in request.parts)

    def num_bytes(self) -> int:
        """Memory of everything wanted, once it is loaded. What is kept twice is there once."""
        kept: set[TensorPart] = set()
        total = 0
        for request in self.requests:
            shared = not request.copied and all(part.kept for part in request.parts)
            if not (shared and kept.issuperset(request.parts)):
                total += request.num_bytes
            if shared:
                kept.update(request.parts)
        return total

    def working_bytes(self, stored: Mapping[str, StoredTensor]) -> int:
        """Memory that the largest request takes besides, while it is read and converted."""
        read = (
            sum(
                math.prod(part.sizes) * stored[part.name].dtype.itemsize
                for part in request.parts
                if part.name in stored and part.needed and not part.kept
            )
            for request in self.requests
        )
        return max(read, default=0)


class Scope:
    """A place in the checkpoint's tree of names. `scope / "norm"` is the place below it."""

    def __init__(self, wants: Wants, prefix: str) -> None:
        self._wants = wants
        self._prefix = prefix
        self.dtype = wants.dtype
        self.formats = wants.formats
        self.kernels = wants.kernels
        self.device = wants.device
        self.image = wants.image
        self.matrices = wants.matrices()

    def __truediv__(self, name: str) -> "Scope":
        return Scope(self._wants, f"{self._prefix}{name}.")

    @property
    def name(self) -> str:
        return self._prefix.removesuffix(".")

    def want(self, name: str, shape: tuple[int, ...], into: Tensor, starts: tuple[int, ...] = ()) -> None:
        """Load the part of `name` that begins at `starts` (default: its origin) into `into`."""
        part = TensorPart(self._prefix + name, shape, starts or (0,) * len(shape), tuple(into.shape))
        self.request([part], lambda tensors: _copy(into, tensors[0]), into.nbytes)

    def request(
        self, parts: Sequence[TensorPart], take: Take, num_bytes: int, *, copied: bool = False
    ) -> None:
        """Hand these parts, whose names are whole, to `take`, all at once."""
        self._wants.requests.append(Request(tuple(parts), take, num_bytes, copied))

    def allow(self, name: str) -> None:
        """A checkpoint may have this tensor; it is not read."""
        self._wants.surplus.add(self._prefix + name)

    def changeable(self, linear: Linear) -> None:
        """Adapters may change this one: its rows are the step's tokens, in their order."""
        self._wants.linears.append(linear)

    def after_loading(self, finish: Callable[[], None]) -> None:
        """Run once all tensors are in place."""
        self._wants.finishers.append(finish)


def load(wants: Wants, read: Read, report: Report, let_go: Callable[[], None] = lambda: None) -> None:
    """Put tensors where they are wanted, request by request, then let the layers finish. `let_go` is called
    when those of a request have been taken."""
    requests, wants.requests = wants.requests, []
    times = Counter(part for request in requests for part in request.parts if part.kept)
    shared: dict[TensorPart, Tensor] = {}
    for done, request in enumerate(requests, 1):
        report("loading weights", f"{done}/{len(requests)}", done / len(requests))
        tensors = []
        for part in request.parts:
            tensor = shared[part] if part in shared else read(part) if part.needed else _NOTHING
            if times[part] > 1:
                shared[part] = tensor
            tensors.append(tensor)
        request.take(tensors)
        let_go()
    for finish in wants.finishers:
        finish()


def reader(wants: Wants, source: Source) -> Read:
    """Reads the wanted parts. Raises StartupError for what does not fit, before anything is read."""
    source = wants.view(source)
    stored = names_of(wants, source)
    _check(wants, {name: source.tensors[own] for name, own in stored.items()})
    return lambda part: source.read(part._replace(name=stored[part.name]))


def names_of(wants: Wants, source: Source) -> dict[str, str]:
    """The name that the model has for each tensor → the source's own, which may lack the model's prefix."""
    names = {name: name for name in source.tensors}
    if not any(name.startswith(wants.base_prefix) for name in names):
        names = {wants.base_prefix + name: name for name in names}
    return names


def random_part(part: TensorPart, device: torch.device | None = None) -> Tensor:
    """Small random weights, the same on every rank: norms are 1 and biases 0. Drawn on `device`, as a CPU
    draws those of a large model for long."""
    if len(part.shape) == 1:
        return torch.full(part.sizes, 0.0 if part.name.endswith("bias") else 1.0, device=device)
    generator = torch.Generator(device or "cpu").manual_seed(crc32(part.name.encode()))
    drawn = torch.randn(part.shape, generator=generator, device=device)
    return part.cut(drawn / math.sqrt(part.shape[-1]))


_NOTHING = torch.empty(0)
_QUANTIZED = (".qweight", ".weight_packed", ".absmax", ".weight_scale", "_blocks")
"""Endings of names that only quantized checkpoints have."""


def _copy(into: Tensor, tensor: Tensor) -> None:
    into.copy_(tensor)


def _check(wants: Wants, stored: Mapping[str, StoredTensor]) -> None:
    wanted = {part.name: part for part in wants.parts()}
    missing = [name for name in wanted if name not in stored]
    if missing:
        hint = "finish the download, or check config.json"
        if any(name.endswith(_QUANTIZED) for name in stored):
            hint = "some matrices are quantized: check `quantization_config` in config.json"
        raise StartupError(f"the checkpoint lacks {_listed(missing)}", hint=hint)
    extra = [n for n in stored if n not in wanted and n not in wants.surplus]
    if extra:
        raise StartupError(
            f"the checkpoint has tensors that its architecture does not use: {_listed(extra)}",
            hint="check `architectures` in config.json",
        )
    for part in wants.parts():
        found = stored[part.name]
        if _lengths(found.shape) != _lengths(part.shape):
            raise StartupError(
                f"{part.name!r} has the shape {list(found.shape)}; config.json implies {list(part.shape)}"
            )
        if found.dtype not in part.dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in part.dtypes)
            raise StartupError(
                f"{part.name!r} is stored as {str(found.dtype).removeprefix('torch.')}; "
                f"config.json implies one of: {known}",
                hint="check `quantization_config` in config.json",
            )


def _lengths(shape: tuple[int, ...]) -> list[int]:
    """Without those of 1: writers of scales disagree about [n] and [n, 1], and [] and [1]."""
    return [length for length in shape if length != 1]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
