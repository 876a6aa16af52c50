"""What a run does, in order: the most valuable first, and what shares a server one after the other.

Times are guesses for an H200 (nothing has been run on one): a step is begun only if as much is left.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from . import served
from .bench import Bench
from .floors import Ceilings
from .gpu_tests import run_tests
from .jobs import Job, run
from .results import Measurement
from .server import READY_S, Model, Server, Servers
from .shapes import SHAPES, SPARSE, TINY, TINY_SPARSE

PARTS = {
    "tests": "every test marked gpu",
    "ceilings": "bandwidth and products of the device, cost of a graph's node; goes before all that follow",
    "decode": "one sequence, four models and a mixture of experts, four kinds of weights",
    "prefill": "prompts of 1,024 to 16,384 tokens",
    "batches": "steady steps of 32, 128 and 256 sequences",
    "offline": "nano-vllm's benchmark, beside HTTP and transformers' continuous batching",
    "http": "1 to 256 streams through the whole stack, beside the engine alone",
    "graphs": "a step in a graph, beside the same kernels launched one by one",
    "invariant": "steps with --batch-invariant on, beside the same without: what it costs",
    "overlap": "steps with --programmatic-launch on, beside the same without: what it saves",
    "kernels": "each kernel beside the ceiling and torch",
    "tune": "block sizes of this GPU, written to worker/kernels/triton/tuned; only when it is named",
}
ONLY_NAMED = ("tune",)


LONGEST = 3
"""Times what a step is expected to take, after which it is cut off."""
LONG_S = 40.0
"""Of a rehearsal, whose steps take seconds on a machine that is not busy."""

Measure = Callable[[Bench, float], Iterator[Measurement]]
"""(bench, seconds that it may take) → what it finds, as it comes"""


@dataclass(frozen=True)
class Step:
    part: str
    name: str
    expected_s: float
    measure: Measure
    model: Model | None = None
    """Whose server it needs; to start it takes time too."""

    def needs_s(self, servers: Servers) -> float:
        """Expected, with the start of a server if it has to be started."""
        return self.expected_s + (start_s(self.model) if self._starts(servers) else 0.0)

    def limit_s(self, servers: Servers) -> float:
        """After which it is cut off: what is expected may be wrong."""
        return max(LONGEST * self.expected_s, 60.0) + (READY_S if self._starts(servers) else 0.0)

    def _starts(self, servers: Servers) -> bool:
        return self.model is not None and not servers.runs(self.model)


def start_s(model: Model | None) -> float:
    """Expected of a server's start: Python, CUDA, kernels, graphs, and the weights."""
    return 0.0 if model is None else 12.0 + model.shape.stored_layer_weights / 1e9


def steps(rehearsal: bool) -> list[Step]:
    return list(_rehearsal() if rehearsal else _all())


def _all() -> Iterator[Step]:
    large, small = Model(SHAPES["Llama-3.1-8B"]), Model(SHAPES["Qwen3-0.6B"])
    yield Step("tests", "tests", 45, run_tests)
    yield Step("ceilings", "ceilings", 12, ceilings)
    yield _on_server("decode", large, 5, served.decode)
    yield _on_server("prefill", large, 8, served.prefill)
    yield _on_server("batches", large, 40, served.batches)
    yield _on_server("http", large, 15, served.http)
    yield _on_server("offline", large, 30, _nano_vllm)
    yield _invariant(large, 10)
    yield _on_server("decode", small, 3, served.decode)
    yield _on_server("offline", small, 15, _nano_vllm)
    yield _on_server("batches", small, 20, served.batches)
    yield _graphs(small, 20)
    yield _overlap(small, 10)
    for weights in ("fp8", "int4"):
        yield _on_server("decode", large._replace(weights=weights), 5, served.decode)
        yield _on_server("prefill", large._replace(weights=weights), 8, served.prefill)
    for weights in ("bf16", "fp8"):
        yield _on_server("decode", Model(SPARSE, weights), 5, served.decode)
    yield Step("kernels", "kernels", 30, kernels)
    yield Step("offline", "transformers Qwen3-0.6B", 60, partial(batching, small))
    for name in ("Qwen3-4B", "Llama-3.2-1B"):
        yield _on_server("decode", Model(SHAPES[name]), 4, served.decode)
    yield _invariant(small, 20)
    yield _graphs(large, 25)
    yield _on_server("decode", large._replace(weights="int8"), 5, served.decode)
    yield Step("offline", "transformers Llama-3.1-8B", 90, partial(batching, large))
    for name in ("Qwen3-0.6B", "Qwen3-4B", "Llama-3.2-1B"):
        for weights in ("fp8", "int4", "int8"):
            yield _on_server("decode", Model(SHAPES[name], weights), 4, served.decode)
    for weights in ("int8", "int4"):
        yield _on_server("decode", Model(SPARSE, weights), 5, served.decode)
    yield Step("tune", "tune", 120, tune)


def _rehearsal() -> Iterator[Step]:
    """Each kind of step once, of the tiny shape."""
    tiny = Model(TINY)
    decode = partial(served.decode, context=32, steps=32)
    batches = partial(served.batches, sizes=(4, 2), context=32, steps=32)
    workload = served.nano_vllm_workload(4, 20, 5, 100)
    yield Step("tests", "tests", LONG_S, run_tests)
    yield Step("ceilings", "ceilings", LONG_S, ceilings)
    yield _on_server("decode", Model(TINY_SPARSE), LONG_S, decode)
    yield _on_server("decode", tiny, LONG_S, decode)
    yield _on_server("prefill", tiny, LONG_S, partial(served.prefill, prompts=((1, 64), (1, 128), (2, 32))))
    yield _on_server("batches", tiny, LONG_S, batches)
    yield _on_server("http", tiny, LONG_S, partial(served.http, streams=(1, 4), tokens=16))
    yield _on_server("offline", tiny, LONG_S, partial(served.offline, workload=workload))
    yield _graphs(tiny, LONG_S, context=32, steps=32)
    yield _invariant(tiny, LONG_S, context=32, steps=32)
    yield _overlap(tiny, LONG_S, context=32, steps=32, other=tiny)
    yield Step("kernels", "kernels", LONG_S, kernels)
    yield Step("offline", "transformers tiny", LONG_S, partial(batching, tiny))
    yield Step("tune", "tune", LONG_S, tune)


def ceilings(bench: Bench, limit_s: float) -> Iterator[Measurement]:
    job = Job(what="ceilings", rehearsal=bench.rehearsal, limit_s=limit_s)
    for found in run(job):
        bench.ceilings = found.ceilings or bench.ceilings
        if found.measurement is not None:
            yield found.measurement


def kernels(bench: Bench, limit_s: float) -> Iterator[Measurement]:
    """One process for all, and after a kernel that breaks it another for the groups that are left."""
    job = Job(what="kernels", rehearsal=bench.rehearsal, limit_s=limit_s, ceilings=bench.known())
    bench.servers.stop()
    end, left, errors = time.monotonic() + limit_s, list(job.groups), dict[str, RuntimeError]()
    while left:
        again = msgspec.structs.replace(job, groups=tuple(left), limit_s=end - time.monotonic())
        try:
            for found in run(again):
                if found.measurement is not None:
                    yield found.measurement
                elif found.done:
                    left.remove(found.done)
        except RuntimeError as error:
            errors[left.pop(0)] = error
    if errors:
        why = RuntimeError("; ".join(f"{group}: {error}" for group, error in errors.items()))
        for note in (note for error in errors.values() for note in error.__notes__):
            why.add_note(note)
        raise why


def batching(model: Model, bench: Bench, limit_s: float) -> Iterator[Measurement]:
    shape, folder = model.shape.name, str(bench.folder)
    job = Job(what="batching", rehearsal=bench.rehearsal, limit_s=limit_s, shape=shape, folder=folder)
    yield from _alone(bench, job)


def tune(bench: Bench, limit_s: float) -> Iterator[Measurement]:
    folder = str(bench.folder)
    yield from _alone(bench, Job(what="tune", rehearsal=bench.rehearsal, limit_s=limit_s, folder=folder))


def _alone(bench: Bench, job: Job) -> Iterator[Measurement]:
    """The device is the job's: no server holds memory."""
    bench.servers.stop()
    for found in run(job):
        if found.measurement is not None:
            yield found.measurement


def _on_server(
    part: str, model: Model, expected_s: float, measure: Callable[[Server, Ceilings], Iterator[Measurement]]
) -> Step:
    def on_server(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        started = bench.servers.runs(model)
        server = bench.servers.get(model, limit_s)
        if not started:
            yield served.started(server)
        yield from measure(server, bench.known())

    return Step(part, f"{part} {model}", expected_s, on_server, model)


def _nano_vllm(server: Server, ceilings: Ceilings) -> Iterator[Measurement]:
    return served.offline(server, ceilings, served.nano_vllm_workload())


def _graphs(model: Model, expected_s: float, **sizes: int) -> Step:
    def both(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        return served.graphs(bench.servers, model, bench.known(), limit_s, **sizes)

    return Step("graphs", f"graphs {model}", expected_s + start_s(model), both, model)


def _invariant(model: Model, expected_s: float, *, context: int = 1024, steps: int = 64) -> Step:
    def both(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        return served.invariant(bench.servers, model, bench.known(), limit_s, context=context, steps=steps)

    return Step("invariant", f"invariant {model}", expected_s + start_s(model), both, model)


def _overlap(
    model: Model, expected_s: float, *, context: int = 1024, steps: int = 128, other: Model | None = None
) -> Step:
    def both(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        return served.overlap(
            bench.servers, model, bench.known(), limit_s, context=context, steps=steps, other=other
        )

    return Step("overlap", f"overlap {model}", expected_s + start_s(model), both, model)
