"""What an engine does with requests that come to it directly, without HTTP: each function is one repetition.

Knows no floors and no GPU. Prompts are drawn anew for each, so that no prefix is found again.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from protocol.client import EngineClient
from protocol.sampling import SamplingParams
from protocol.stream import TokenStream

STRETCH = 16
"""Steps that are timed together: some come in one message when the reader is late."""
ROOM = 1024
"""Tokens that the first sequences may have made before the last one has begun."""


class Request(NamedTuple):
    prompt: Sequence[int]
    num_tokens: int
    """Of the answer, which ends at no token before."""


class Steady(NamedTuple):
    """Decode steps while all sequences run."""

    step_s: list[float]
    """Mean of each stretch of steps."""
    context_tokens: float
    """Of all sequences together, halfway."""


async def steady(client: EngineClient, prompts: Sequence[Sequence[int]], steps: int) -> Steady:
    """Times `steps` steps from when the last prompt is done. Raises RuntimeError if not all fit."""
    facts = client.facts
    assert facts is not None
    _check_room(facts.num_blocks * facts.block_size, sum(map(len, prompts)), len(prompts) * steps)
    room = min(ROOM + steps, facts.max_model_len - max(map(len, prompts)))
    streams = [client.submit(prompt, _exactly(room)) for prompt in prompts]
    reference: asyncio.Future[list[tuple[float, int]]] = asyncio.get_running_loop().create_future()
    waiting = len(prompts)

    async def follow(stream: TokenStream) -> None:
        nonlocal waiting
        begun, tokens = False, 0
        arrivals: list[tuple[float, int]] = []
        async for batch in stream:
            waiting -= not begun
            begun = True
            if waiting == 0:
                tokens += len(batch.token_ids) if arrivals else 0
                arrivals.append((time.perf_counter(), len(batch.token_ids)))
                if tokens >= steps:
                    if not reference.done():
                        reference.set_result(arrivals)
                    return
        raise RuntimeError(f"an answer of {room} tokens ended before {len(prompts)} ran together for {steps}")

    tasks = [asyncio.ensure_future(follow(stream)) for stream in streams]
    try:
        waited: list[asyncio.Future[Any]] = [reference, *tasks]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # raises what the stream raised
    finally:
        for task, stream in zip(tasks, streams, strict=True):
            task.cancel()
            stream.close()
        await asyncio.gather(*tasks, return_exceptions=True)
    tokens = sum(map(len, prompts)) + sum(len(stream.token_ids) for stream in streams)
    return Steady(_stretches(reference.result()), tokens - len(prompts) * steps / 2)


async def first_tokens_s(client: EngineClient, prompts: Sequence[Sequence[int]]) -> float:
    """Seconds until every prompt has its first token, of which there is no second."""
    return await complete_s(client, [Request(prompt, 1) for prompt in prompts])


async def complete_s(client: EngineClient, requests: Sequence[Request], temperature: float = 0.0) -> float:
    """Seconds until every answer is complete. Raises what the engine core says of one."""

    async def answer(request: Request) -> int:
        sampling = _exactly(request.num_tokens, temperature)
        return sum([len(batch.token_ids) async for batch in client.submit(request.prompt, sampling)])

    began = time.perf_counter()
    lengths = await asyncio.gather(*map(answer, requests))
    seconds = time.perf_counter() - began
    wanted = [request.num_tokens for request in requests]
    if lengths != wanted:
        raise RuntimeError(f"{sum(lengths)} tokens came instead of {sum(wanted)}")
    return seconds


def _exactly(num_tokens: int, temperature: float = 0.0) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=temperature, ignore_eos=True)


def _check_room(capacity: int, prompts: int, answers: int) -> None:
    if prompts + answers > capacity:
        raise RuntimeError(
            f"the KV blocks hold {capacity} tokens; {prompts + answers} would be needed at once"
        )


def _stretches(arrivals: Sequence[tuple[float, int]]) -> list[float]:
    """(time, tokens that came then), of which the first only begins → seconds a token."""
    found = []
    begin, tokens = arrivals[0][0], 0
    for at, count in arrivals[1:]:
        tokens += count
        if tokens >= STRETCH or at == arrivals[-1][0]:
            found.append((at - begin) / tokens)
            begin, tokens = at, 0
    return found
