"""How much memory there is, and how much of it is for KV. Without torch: the supervisor asks, too."""

import ctypes
from contextlib import suppress
from pathlib import Path

FREE_SHARE = 0.25
"""Of the machine's available memory, when no size is given. The rest is for everyone else."""
MOST_BYTES = 4 << 30
QUANTIZED_KV = ("fp8", "int8")
"""Of --kv-cache-dtype, besides auto."""
KV_SCALE_BYTES = 4
KEPT_PIECE = 32 << 20
"""Pieces up to this come from malloc's own heap, where what is freed is used again: glibc takes no more."""
KEPT_BYTES = 256 << 20
"""Of free memory at the heap's end: more than what lies between the layers of a prompt of 4,096 tokens and
0.6 billion weights."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def kv_vector_bytes(head_dim: int, item_bytes: int, kv_cache_dtype: str) -> int:
    """Of one key or value of one head in the cache; `item_bytes` of the model's own numbers."""
    return head_dim + KV_SCALE_BYTES if kv_cache_dtype in QUANTIZED_KV else head_dim * item_bytes


def set_aside(available_bytes: int) -> int:
    """For KV, of what is available besides the weights, when no size is given."""
    return min(int(available_bytes * FREE_SHARE), MOST_BYTES)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still take: of the machine, or of its control group if less.

    A group's usage counts the pages of files that it has read, which the kernel takes back when memory is
    wanted. Most are weights that the last worker has mapped: they must not keep the next one from starting.
    """
    available = _numbers(proc / "meminfo")["MemAvailable:"] * 1024
    for limit, usage, stat, prefix in (
        ("memory.max", "memory.current", "memory.stat", ""),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
    ):
        if not (cgroup / limit).exists() or not (cgroup / usage).exists():
            continue
        most = (cgroup / limit).read_text().strip()
        if most != "max":
            kinds = _numbers(cgroup / stat)
            files = sum(kinds.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
            available = min(available, int(most) - int((cgroup / usage).read_text()) + files)
    return max(available, 0)


def give_back() -> None:
    """Freed memory that malloc keeps for later goes back to the system: 160 MB after 0.6 billion weights were
    rounded to int8, in 10 ms. Only glibc's malloc can be asked."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """From now on malloc keeps what is freed for the next layer and the next step. Otherwise much of it goes
    back to the system each time, and a prompt of 1,024 tokens of Qwen3-0.6B's shape waits for up to 250,000
    pages to be found and cleared: 1.7 s become 1.8 to 2.1. Only glibc's malloc can be told."""
    with suppress(AttributeError, OSError):
        tell = ctypes.CDLL(None).mallopt
        tell(_M_MMAP_THRESHOLD, KEPT_PIECE)
        tell(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(number) for name, number, *_ in map(str.split, lines)}


def gpu_driver(device: Path = Path("/dev/nvidiactl")) -> bool:
    """Whether an NVIDIA driver is loaded, so that a model may be served from other memory than the
    machine's."""
    return device.exists()


def total_memory(proc: Path = Path("/proc")) -> int:
    """Bytes of the machine."""
    return _numbers(proc / "meminfo")["MemTotal:"] * 1024
