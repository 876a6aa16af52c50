"""MappedFile: a safetensors file as memory. Knows where bytes lie, not what they mean.

The pages are the kernel's cache of the file: a worker that starts again finds them there, and workers of one
machine share them. The map is private, so a write to it would be this process's own and never reach the file.

What `tensor` returns has been read once, as far as the kernel can be asked to (Linux 5.14), so that a file
that cannot be read is an error and not a signal. A file that is cut short *later* ends the process with
SIGBUS at the first touch of a page that is gone: the supervisor reports a crash, and the next start names the
truncated file. A file that is overwritten in place changes the weights: replace checkpoints by renaming, or
read them with --no-mmap.
"""

import errno
import math
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14, which Python does not name."""
_PIECE = 64 << 20
"""Bytes asked for at once."""


class MappedFile:
    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise _shorter()
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A view, which keeps the map alive. Raises OSError when its pages cannot be read."""
        count = math.prod(shape)
        if offset + count * dtype.itemsize > len(self._map):
            raise _shorter()
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        self._touch(offset, count * dtype.itemsize)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def let_go(self) -> None:
        """Of its pages, until one is touched again: then the kernel's cache has it, or the disk."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _touch(self, offset: int, num_bytes: int) -> None:
        begin, stop = offset - offset % mmap.PAGESIZE, offset + num_bytes
        for start in range(begin, stop, _PIECE):
            try:
                self._map.madvise(_POPULATE_READ, start, min(_PIECE, stop - start))
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise _shorter() from None
                if error.errno != errno.EINVAL:
                    raise
                self._map.madvise(mmap.MADV_WILLNEED, start, min(_PIECE, stop - start))


def _shorter() -> OSError:
    return OSError(errno.EIO, "it has become shorter since its header was read, or its disk fails")
