"""What a device does at best: bytes read, products of each type; and what one more node of a graph costs."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from worker.kernels.triton.norm import norm

from .floors import Ceilings
from .results import Measurement
from .timing import Calls, launched_s, seconds


def bandwidth(device: torch.device, numbers: int = 1 << 28) -> Iterator[Measurement]:
    """Of a copy, read and written bytes together, and of reading alone. `numbers`: float32."""
    source, target = (torch.ones(numbers, dtype=torch.float32, device=device) for _ in range(2))
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "copy, read + write": (2 * source.nbytes, partial(target.copy_, source)),
        "read (torch.sum)": (source.nbytes, partial(torch.sum, source)),
    }
    for name, (num_bytes, call) in ways.items():
        rate = num_bytes / seconds([call], device)[1] / 1e12
        yield Measurement(part="ceilings", name=name, value=rate, unit="TB/s", better="higher")


def products(device: torch.device, dtype: torch.dtype, size: int = 8192) -> Iterator[tuple[str, float]]:
    """FLOP/s of size³ products of random numbers, by the names of weights in floors.py; bf16 first."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"bf16": partial(torch.mm, a, b)}
    if device.type == "cuda":
        a_int, b_int = (torch.randint(-127, 128, (size, size), device=device).to(torch.int8) for _ in "ab")
        calls["int8"] = partial(torch._int_mm, a_int, b_int.t())
        if torch.cuda.get_device_capability() >= (8, 9):
            a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
            one = torch.ones((), device=device)
            calls["fp8"] = partial(torch._scaled_mm, a8, b8, one, one, out_dtype=torch.bfloat16)
    for name, call in calls.items():
        yield name, 2 * size**3 / seconds([call], device)[1]


def measure(
    device: torch.device, dtype: torch.dtype, *, numbers: int = 1 << 28, size: int = 8192, count: int = 500
) -> Iterator[Measurement | Ceilings]:
    """Every figure; and, again with each kind of product, what the floors of all other parts follow from: the
    better of the two bandwidths, and the rates so far."""
    bytes_per_s, rates = 0.0, dict[str, float]()
    for found in bandwidth(device, numbers):
        bytes_per_s = max(bytes_per_s, found.value * 1e12)
        yield found
    for name, rate in products(device, dtype, size):
        what = f"{name} product of {size}³"
        yield Measurement(part="ceilings", name=what, value=rate / 1e12, unit="TFLOP/s", better="higher")
        rates[name] = rate
        yield Ceilings(bytes_per_s, dict(rates))
    yield from graph_node(device, dtype, count)


def graph_node(device: torch.device, dtype: torch.dtype, count: int = 500) -> Iterator[Measurement]:
    """From one tiny kernel to the next: inside a graph, what every launch of a step costs at least; launched
    from Python, what a graph saves."""
    x = torch.zeros(1, 1024, device=device, dtype=dtype)
    weight = torch.ones(1024, device=device, dtype=dtype)
    many: dict[str, Calls] = {
        "torch add_": [partial(x.add_, 1)] * count,
        "Triton RMSNorm of 1,024": [partial(norm, x, weight, 1e-6)] * count,
    }
    for name, calls in many.items():
        for where, timed in (("in a graph", seconds), ("launched from Python", launched_s)):
            middle, least, most = timed(calls, device)
            yield Measurement(
                part="ceilings",
                name=f"{name}, {where}",
                value=middle * 1e6,
                unit="µs",
                spread=(least * 1e6, most * 1e6),
            )
