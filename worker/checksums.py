"""A checkpoint's checksums: the file SHA256SUMS, as `sha256sum *.safetensors > SHA256SUMS` writes it.

Where there is one it is always obeyed: every safetensors file must be listed, and every listed file that
is there must be as listed. It is the only thing that notices a flipped bit. It costs one more reading of
the files, at 1 to 2 GB/s on a core with SHA instructions, before anything is loaded. Knows no tensors.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from protocol.errors import StartupError

NAME = "SHA256SUMS"
CHUNK_BYTES = 16 << 20

_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<name>[^/\\]+)")


def verify(
    folder: Path,
    needed: Iterable[str],
    report: Callable[[str, str, float | None], None],
    *,
    rank: int = 0,
    size: int = 1,
) -> None:
    """Raises StartupError for a file that is not as listed, or needed and not listed.

    Each of `size` ranks reads its share of the files.
    """
    if not (folder / NAME).is_file():
        return
    listed = _read(folder)
    for name in sorted(set(needed) - listed.keys()):
        raise StartupError(
            f"{NAME} does not list {name!r}", hint=f"sha256sum *.safetensors > {NAME}, where it is whole"
        )
    there = sorted(name for name in listed if (folder / name).is_file())
    for name in there[rank::size]:
        try:
            found = _digest(folder / name, report)
        except OSError as error:
            raise StartupError(f"{name} cannot be read: {error.strerror}") from None
        if found != listed[name]:
            raise StartupError(
                f"{name} is not what {NAME} says: its SHA-256 differs",
                hint="copy the checkpoint again; if the file was changed on purpose, list it anew",
            )


def _read(folder: Path) -> dict[str, str]:
    """File name → digest in lower case."""
    try:
        lines = (folder / NAME).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{NAME} cannot be read: {error}") from None
    listed = {}
    for number, line in enumerate(lines, 1):
        if (match := _LINE.fullmatch(line)) is None:
            raise StartupError(f"line {number} of {NAME} is not 64 hexadecimal digits and the name of a file")
        listed[match["name"]] = match["digest"].lower()
    return listed


def _digest(path: Path, report: Callable[[str, str, float | None], None]) -> str:
    digest, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        whole = max(os.fstat(file.fileno()).st_size, 1)
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            report("verifying checksums", path.name, min(done / whole, 1.0))
    return digest.hexdigest()
