"""Measurements on a running server, each beside its floor: what users of this engine get of their GPU.

    decode    one sequence                           batches   many at once, steadily
    prefill   prompts until their first token        offline   a whole workload, as nano-vllm's bench.py
    http      through the HTTP stack, and beside it  graphs    a step in a graph beside the same without
    invariant a step with --batch-invariant on, beside the same without
    overlap   a step with --programmatic-launch on, likewise

Everything but `http` goes through EngineClient: engine core and worker as they serve, without text. Goals are
shares of the floor on an H200.
"""

import random
import time
from collections.abc import Iterator, Sequence

from scripts.bench.load import completion_request, together

from .engine import Request, Steady, complete_s, first_tokens_s, steady
from .floors import Ceilings, prefill_floor_s, step_floor_s, workload_floor_s
from .results import At, Measurement, median
from .server import Model, Server, Servers

DECODE_GOALS = {
    ("Llama-3.1-8B", "bf16"): 0.90,
    ("Llama-3.1-8B", "fp8"): 0.80,
    ("Llama-3.1-8B", "int4"): 0.70,
    ("Qwen3-4B", "bf16"): 0.85,
    ("Llama-3.2-1B", "bf16"): 0.75,
    ("Qwen3-0.6B", "bf16"): 0.50,
}
BATCH_GOALS = {256: 0.85}
PREFILL_GOALS = {"bf16": 0.80}
OFFLINE_GOALS = {"Qwen3-0.6B": 0.75, "Llama-3.1-8B": 0.85}
HTTP_GOAL = 0.95
INVARIANT_GOAL = 1 / 1.03
"""Of the speed without: where it costs no more, --batch-invariant may be on without being asked for."""
GRAPH_GOALS = {"Qwen3-0.6B": 3.0, "Llama-3.1-8B": 1.3}


def started(server: Server) -> Measurement:
    """From the command to the first request that it would take."""
    name = f"{server.model}: command to ready"
    return Measurement(part="start", name=name, value=server.stack.ready_s, unit="s")


def decode(
    server: Server, ceilings: Ceilings, *, context: int = 1024, steps: int = 192
) -> Iterator[Measurement]:
    """One sequence."""
    model = server.model
    goal = DECODE_GOALS.get((model.shape.name, model.weights))
    yield _steady("decode", server, ceilings, 1, context, steps, goal)


def batches(
    server: Server,
    ceilings: Ceilings,
    *,
    sizes: Sequence[int] = (256, 32, 128),
    context: int = 1024,
    steps: int = 64,
) -> Iterator[Measurement]:
    """Steady steps of many sequences."""
    for size in sizes:
        yield _steady("batches", server, ceilings, size, context, steps, BATCH_GOALS.get(size))


def prefill(
    server: Server,
    ceilings: Ceilings,
    *,
    prompts: Sequence[tuple[int, int]] = ((1, 1024), (1, 4096), (1, 16_384), (16, 1024)),
    repetitions: int = 3,
) -> Iterator[Measurement]:
    """(count, tokens) of prompts that come together, until each has its first token."""
    shape, weights = server.model.shape, server.model.weights
    for count, tokens in prompts:
        times = [
            server.ask(first_tokens_s(server.client, server.prompts(count, tokens))) * 1e3
            for _ in range(repetitions)
        ]
        name = f"{server.model}, {count} prompt{'s' * (count > 1)} of {tokens:,} tokens"
        yield Measurement(
            part="prefill",
            name=name,
            value=median(times),
            unit="ms",
            limit=count * prefill_floor_s(shape, ceilings, tokens, weights) * 1e3,
            goal=PREFILL_GOALS.get(weights),
            spread=(min(times), max(times)),
            at=At("tokens of a prompt", tokens, str(server.model)) if count == 1 else None,
        )


def nano_vllm_workload(
    sequences: int = 256, longest: int = 1024, shortest: int = 100, ids: int = 10_000
) -> list[Request]:
    """As nano-vllm's bench.py draws it: 142,827 tokens of prompts, 133,966 of answers."""
    draw = random.Random(0)
    prompts = [
        [draw.randint(0, ids) for _ in range(draw.randint(shortest, longest))] for _ in range(sequences)
    ]
    return [Request(prompt, draw.randint(shortest, longest)) for prompt in prompts]


def offline(
    server: Server, ceilings: Ceilings, workload: Sequence[Request], *, http: bool = True
) -> Iterator[Measurement]:
    """All requests at once, at temperature 0.6; then the same lengths through HTTP."""
    model, goal = server.model, OFFLINE_GOALS.get(server.model.shape.name)
    tokens = sum(request.num_tokens for request in workload)
    lengths = [(len(request.prompt), request.num_tokens) for request in workload]
    floor = tokens / workload_floor_s(model.shape, ceilings, lengths, model.weights)
    rate = tokens / server.ask(complete_s(server.client, workload, 0.6))
    name = f"{model}, nano-vllm's benchmark ({len(workload)} sequences, {tokens:,} tokens)"
    yield Measurement(
        part="offline", name=name, value=rate, unit="tok/s", better="higher", limit=floor, goal=goal
    )
    if http:
        again = [
            Request([*prompt[1:], (prompt[0] + 1) % model.shape.vocab_size], count)
            for prompt, count in workload  # no prefix is found again
        ]
        rate_http = tokens / server.ask(_through_http(server, again, 0.6))
        yield Measurement(
            part="offline",
            name=f"{name} through HTTP, beside without",
            value=rate_http,
            unit="tok/s",
            better="higher",
            limit=rate,
            goal=HTTP_GOAL,
        )


def http(
    server: Server,
    ceilings: Ceilings,
    *,
    streams: Sequence[int] = (1, 4, 16, 64, 128, 256),
    tokens: int = 128,
    repetitions: int = 2,
) -> Iterator[Measurement]:
    """So many streams at once, `tokens` in and out, engine and HTTP in turn."""
    model = server.model
    for count in streams:
        engine, whole = [], []
        for _ in range(repetitions):
            engine.append(
                count * tokens / server.ask(complete_s(server.client, _requests(server, count, tokens)))
            )
            whole.append(
                count * tokens / server.ask(_through_http(server, _requests(server, count, tokens), 0.0))
            )
        floor = workload_floor_s(model.shape, ceilings, [(tokens, tokens)] * count, model.weights)
        name = f"{model}, {count} stream{'s' * (count > 1)}, {tokens} → {tokens} tokens"
        pairs = (("engine alone", engine, count * tokens / floor, None),)
        for what, rates, limit, goal in (*pairs, ("HTTP beside it", whole, median(engine), HTTP_GOAL)):
            yield Measurement(
                part="http",
                name=f"{name}, {what}",
                value=median(rates),
                unit="tok/s",
                better="higher",
                limit=limit,
                goal=goal,
                spread=(min(rates), max(rates)),
                at=At("streams", count, what),
            )


def graphs(
    servers: Servers,
    model: Model,
    ceilings: Ceilings,
    limit_s: float,
    *,
    context: int = 1024,
    steps: int = 128,
) -> Iterator[Measurement]:
    """One sequence, on a server that replays graphs and on one that launches each kernel."""
    found: list[Steady] = []
    end = time.monotonic() + limit_s
    for which in (model, model._replace(graphs=False)):
        server = servers.get(which, end - time.monotonic())
        found.append(server.ask(steady(server.client, server.prompts(1, context), steps)))
    inside, outside = ([seconds * 1e3 for seconds in one.step_s] for one in found)
    yield Measurement(
        part="graphs",
        name=f"{model}, 1 × {context:,} tokens: in a graph, beside kernels launched one by one",
        value=median(inside),
        unit="ms/step",
        limit=median(outside),
        goal=GRAPH_GOALS.get(model.shape.name),
        spread=(min(inside), max(inside)),
    )


def invariant(
    servers: Servers,
    model: Model,
    ceilings: Ceilings,
    limit_s: float,
    *,
    sizes: Sequence[int] = (1, 32),
    context: int = 1024,
    steps: int = 64,
) -> Iterator[Measurement]:
    """What `--batch-invariant on` costs, and whether that is little enough to be the default."""
    found: list[list[Steady]] = []
    end = time.monotonic() + limit_s
    for which in (model, model._replace(invariant=True)):
        server = servers.get(which, end - time.monotonic())
        found.append([server.ask(steady(server.client, server.prompts(n, context), steps)) for n in sizes])
    for size, without, with_it in zip(sizes, *found, strict=True):
        off, on = ([seconds * 1e3 for seconds in one.step_s] for one in (without, with_it))
        cost = median(on) / median(off) - 1
        verdict = "it may be the default" if cost < 0.03 else "it stays to be asked for"
        yield Measurement(
            part="invariant",
            name=f"{model}, {size} × {context:,} tokens: --batch-invariant on, {cost:+.1%}: {verdict}",
            value=median(on),
            unit="ms/step",
            limit=median(off),
            goal=INVARIANT_GOAL,
            spread=(min(on), max(on)),
        )


def overlap(
    servers: Servers,
    model: Model,
    ceilings: Ceilings,
    limit_s: float,
    *,
    context: int = 1024,
    steps: int = 128,
    other: Model | None = None,
) -> Iterator[Measurement]:
    """What --programmatic-launch on saves one sequence. `other`: instead of the same model with it."""
    found: list[Steady] = []
    end = time.monotonic() + limit_s
    for which in (model, other or model._replace(overlapping=True)):
        server = servers.get(which, end - time.monotonic())
        found.append(server.ask(steady(server.client, server.prompts(1, context), steps)))
    off, on = ([seconds * 1e3 for seconds in one.step_s] for one in found)
    yield Measurement(
        part="overlap",
        name=f"{model}, 1 × {context:,} tokens: --programmatic-launch on, beside the same without",
        value=median(on),
        unit="ms/step",
        limit=median(off),
        spread=(min(on), max(on)),
    )


def _steady(
    part: str, server: Server, ceilings: Ceilings, rows: int, context: int, steps: int, goal: float | None
) -> Measurement:
    model = server.model
    found = server.ask(steady(server.client, server.prompts(rows, context), steps))
    times = [seconds * 1e3 for seconds in found.step_s]
    floor = step_floor_s(
        model.shape, ceilings, rows=rows, context_tokens=found.context_tokens, weights=model.weights
    )
    return Measurement(
        part=part,
        name=f"{model}, {rows} × {context:,} tokens",
        value=median(times),
        unit="ms/step",
        limit=floor * 1e3,
        goal=goal,
        spread=(min(times), max(times)),
        at=At("sequences", rows, str(model)),
    )


def _requests(server: Server, count: int, tokens: int) -> list[Request]:
    return [Request(prompt, tokens) for prompt in server.prompts(count, tokens)]


async def _through_http(server: Server, requests: Sequence[Request], temperature: float) -> float:
    """Seconds from the first byte sent to the last received. Raises RuntimeError."""
    bodies = [
        completion_request(list(request.prompt), request.num_tokens, temperature=temperature)
        for request in requests
    ]
    streams, seconds = await together(server.stack.host, server.stack.port, bodies)
    came, wanted = sum(s.num_tokens for s in streams), sum(r.num_tokens for r in requests)
    if came != wanted:
        raise RuntimeError(f"{came} tokens came through HTTP instead of {wanted}")
    return seconds
