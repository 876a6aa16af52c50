"""Group: the ranks that share each layer of a model. Knows collectives, and nothing of what is computed.

A group of one does nothing at all, so the layers call it unconditionally. Ranks meet in a file of the
group's own folder and talk over the loopback device, or from GPU to GPU through NCCL: no port is fixed and
nothing is reachable from outside. There is no default process group, hence no global state.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from protocol.errors import StartupError


class Span(NamedTuple):
    """The part of a dimension that one rank holds."""

    total: int
    start: int
    length: int

    def times(self, factor: int) -> "Span":
        """The same part of a dimension whose every element is `factor` wide."""
        return Span(self.total * factor, self.start * factor, self.length * factor)


def whole(total: int) -> Span:
    """What every rank holds all of."""
    return Span(total, 0, total)


class Group:
    """One rank's view of its group. All ranks make the same calls in the same order."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        folder: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Waits for the other ranks when there are any; `folder` is where they meet. Tensors that are
        reduced or gathered are on `device`: on this rank's own GPU, or on the CPU."""
        self.rank = rank
        self.size = size
        self._device = device or torch.device("cpu")
        if size > 1:
            assert folder is not None
            store = c10d.FileStore(str(folder / "rendezvous"), size)
            connect = _nccl if self._device.type == "cuda" else _gloo
            self._ranks = connect(store, rank, size)

    def span(self, total: int, what: str) -> Span:
        """This rank's equal part of `total`. Raises StartupError when it does not divide."""
        if total % self.size:
            raise StartupError(
                f"{what} is {total}, which --tensor-parallel-size {self.size} does not divide",
                hint=f"use a tensor parallel size that divides {total}",
            )
        length = total // self.size
        return Span(total, self.rank * length, length)

    def shared_span(self, total: int, what: str) -> Span:
        """As `span`, but when there are fewer things than ranks, several ranks hold the same one."""
        if self.size <= total or self.size % total:
            return self.span(total, what)
        return Span(total, self.rank * total // self.size, 1)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            self._ranks.allreduce([tensor]).wait()
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[n, v] of each rank → [n, size * v], in the order of the ranks."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._ranks.allgather([parts], [tensor.contiguous()]).wait()
        return torch.cat(parts, dim=-1)

    def smallest(self, number: int) -> int:
        """The least of the ranks' numbers."""
        if self.size == 1:
            return number
        return int(self.all_gather(torch.tensor([[number]], device=self._device)).min())


def _gloo(store: c10d.Store, rank: int, size: int) -> Any:
    gloo: Any = c10d.ProcessGroupGloo  # its stub lacks most of it
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    return gloo(store, rank, size, options)


def _nccl(store: c10d.Store, rank: int, size: int) -> Any:
    """Waiting for a result makes the current stream wait, not the host. Torch has it only where it is built
    with CUDA."""
    nccl: Any = vars(c10d)["ProcessGroupNCCL"]
    return nccl(store, rank, size, nccl.Options())
