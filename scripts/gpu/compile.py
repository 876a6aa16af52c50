"""Kernels compiled without a device, exactly as their wrappers would launch them on one.

A wrapper is called with tensors on torch's `meta` device, which have shapes and types but no memory; its
launches are recorded instead of run. Each launch says how its kernel would be specialized (types,
constants, divisibility), and is compiled for a target by Triton and ptxas, which come in Triton's wheel.
"""

import importlib
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl")
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
ALIGNMENT = 16
"""Bytes of a pointer, and divisor of an integer, that Triton specializes for."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel as one wrapper launched it."""

    module: str
    function: str
    signature: dict[str, str]
    constants: dict[str, object]
    attributes: dict[tuple[int, ...], list[list[object]]]
    options: dict[str, object]
    grid: tuple[int, ...] = field(compare=False, default=())
    """Blocks; any number of them is the same kernel."""

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def name(self) -> str:
        """file.kernel"""
        return f"{self.module.rpartition('.')[2]}.{self.function.lstrip('_')}"

    @property
    def kernel(self) -> "JITFunction[Any]":
        found: JITFunction[Any] = getattr(importlib.import_module(self.module), self.function)
        return found


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel takes of a multiprocessor."""

    registers: int
    """Of each thread; 255 at most."""
    stack_bytes: int
    """Of each thread in local memory: what did not fit the registers."""
    shared_bytes: int
    num_warps: int
    load_bytes: int = 0
    """That a thread loads from memory at once, at most."""
    block_bytes: int = 0
    """Of a block under way at once, at most: buffers that are filled while it computes; or, where it has
    none, what its loop streams into registers."""


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches of a wrapper that is called with tensors on the meta device."""
    launches: list[Launch] = []
    with _recording(launches):
        call()
    return launches


def compile_for(launch: Launch, capability: int) -> Resources:
    """`capability`: 80, 89, 90, 100 … Raises what Triton or ptxas raise."""
    compiled = compiled_for(launch, capability)
    registers, stack_bytes = _usage(compiled.asm["cubin"])
    metadata = compiled.metadata
    loads, streamed, copies = _loads(compiled.asm["ptx"])
    under_way = metadata.shared if copies else 32 * metadata.num_warps * sum(streamed)
    largest = max(streamed or copies or loads, default=0)
    return Resources(registers, stack_bytes, metadata.shared, metadata.num_warps, largest, under_way)


def compiled_for(launch: Launch, capability: int) -> Any:
    """Triton's own, whose `asm` has PTX and cubin."""
    kernel = launch.kernel
    source = ASTSource(
        fn=kernel,
        signature=launch.signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in launch.constants.items()},
        attrs=launch.attributes,
    )
    target = GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": True, **launch.options}  # what Triton 3.9 warns of when it is left open
    return triton.compile(source, target=target, options=options)


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    def run(
        kernel: "JITFunction[Any]", *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object
    ) -> None:
        launches.append(_launch(kernel, grid, args, kwargs))

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


@dataclass
class _Specialized:
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, object] = field(default_factory=dict)
    attributes: dict[tuple[int, ...], list[list[object]]] = field(default_factory=dict)


def _launch(
    kernel: "JITFunction[Any]", grid: tuple[int, ...], args: tuple[object, ...], kwargs: dict[str, object]
) -> Launch:
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    found = _Specialized()
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None:
            found.constants[parameter.name] = value
            found.signature[parameter.name] = "constexpr"
        elif parameter.do_not_specialize:
            found.signature[parameter.name] = "i32"
        else:
            _specialize(found, index, parameter.name, value)
    function = kernel.fn
    return Launch(
        function.__module__, function.__name__, found.signature, found.constants, found.attributes, options,
        grid,
    )  # fmt: skip


def _specialize(found: _Specialized, index: int, name: str, value: object) -> None:
    """As Triton's launcher does: an integer that is 1 is a constant, one divisible by 16 is known to be."""
    match value:
        case Tensor():
            found.signature[name] = "*" + TYPES[value.dtype]
            aligned = True
        case bool():
            found.signature[name], aligned = "i1", False
        case 1:
            found.signature[name], found.constants[name], aligned = "constexpr", 1, False
        case int():
            found.signature[name] = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
            aligned = value % ALIGNMENT == 0
        case float():
            found.signature[name], aligned = "fp32", False
        case _:
            raise TypeError(f"kernels take tensors and numbers, not {value!r}")
    if aligned:
        found.attributes[(index,)] = [["tt.divisibility", ALIGNMENT]]


def _loads(ptx: str) -> tuple[list[int], list[int], list[int]]:
    """Bytes of each load from memory into registers, of those of them that stay in no cache, and of each copy
    into shared memory."""
    loads = list(re.finditer(r"ld\.global(\S*?)(?:\.v(\d))?\.[a-z](\d+) ", ptx))
    sizes = [int(load[2] or 1) * int(load[3]) // 8 for load in loads]
    streamed = [size for size, load in zip(sizes, loads, strict=True) if "evict_first" in load[1]]
    copies = re.finditer(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x[0-9a-f]+|\d+),", ptx)
    return sizes, streamed, [int(copy[1], 0) for copy in copies]


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a cubin with one kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump does not tell the registers: {text!r}")
    return int(found[1]), int(found[2])
