"""Every benchmark's code is run here without a GPU: on tensors without memory, with launches recorded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scripts.gpu import benchmarks, decode
from scripts.gpu.compile import Launch, record
from scripts.gpu.floors import Ceilings
from scripts.gpu.results import Measurement

H100 = Ceilings(3e12, 7e14)
META = torch.device("meta")


class FakeEvent:
    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self, stream: object) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: object) -> float:
        return 64.0


class FakeDevice:
    """Captures nothing, replays at once."""

    main = side = SimpleNamespace(stream=None)

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        return body

    @contextmanager
    def on(self, stream: object) -> Iterator[None]:
        yield


@pytest.fixture(autouse=True)
def no_gpu_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def replayed_s(calls: Sequence[Callable[[], object]]) -> tuple[float, float, float]:
        calls[0]()
        return 2e-3, 1e-3, 3e-3

    monkeypatch.setattr(benchmarks, "replayed_s", replayed_s)
    monkeypatch.setattr(benchmarks, "CUDA", META)
    monkeypatch.setattr(decode, "CUDA", META)
    monkeypatch.setattr(decode, "CudaDevice", FakeDevice)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def recorded(subset: Callable[[Ceilings], Iterator[Measurement]]) -> tuple[list[Measurement], list[Launch]]:
    found: list[Measurement] = []
    launches = record(lambda: found.extend(subset(H100)))
    return found, launches


def test_ceilings_are_the_best_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", lambda *args, **options: None)
    ceilings, found = benchmarks.ceilings()
    assert ceilings.bytes_per_s == 2 * 4 * (1 << 28) / 1e-3
    assert ceilings.flops == 2 * 8192**3 / 1e-3
    assert [m.unit for m in found] == ["TB/s", "TB/s", "TFLOP/s", "TFLOP/s"]


def test_what_a_node_costs() -> None:
    found, launches = recorded(benchmarks.graph_node)
    assert [m.value for m in found] == [2e3, 2e3]
    assert {launch.name for launch in launches} == {"norm.norm"}


def test_kernels_beside_torch_and_the_ceiling() -> None:
    found, launches = recorded(benchmarks.kernels)
    assert {launch.name for launch in launches} == {
        "activation.activate",
        "decode_attention.attend",
        "decode_attention.merge",
        "decode_attention.plan",
        "gemv.gemv",
        "int4_matmul.int4_matmul",
        "matmul.matmul",
        "prefill_attention.prefill",
    }
    assert all(m.ratio is not None for m in found)
    assert len({m.name for m in found}) == len(found)
    gemv = next(m for m in found if m.name.startswith("gemv bf16"))
    assert gemv.limit == pytest.approx(28672 * 4096 * 2 / 3e12 * 1e6)


def test_decode_steps_of_published_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one small shape here, and one step at a time."""
    shape = replace(decode.SHAPES["Qwen3-0.6B"], num_layers=1)
    monkeypatch.setattr(decode, "SHAPES", dict.fromkeys(decode.SHAPES, shape))
    monkeypatch.setattr(decode, "STEPS", 1)
    found, launches = recorded(decode.single_stream)
    assert len(found) == 16
    assert found[0].value == 64.0
    assert found[0].goal == 0.5
    steps = sum(launch.name == "rope_kv.rope_kv" for launch in launches)
    assert steps == 16 * (1 + 5), "one to compile, then the timed ones, which a graph only replays"
