"""Clients that leave, do not read, or never finish asking: their work ends, and nobody else notices."""

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.at_rest import Core
from tests.stack.raw_http import RawConnection, ask, completion, request

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack

CANARY = "canary-5f1c"
LENGTH = 8000
"""Tokens: seconds of the stub's time, far longer than it takes to leave."""


async def text_of(stack: "Stack", prompt: str, length: int) -> str:
    response = await ask(stack, completion(prompt=prompt, max_tokens=length))
    assert response.status == 200, response
    text: str = response.json["choices"][0]["text"]
    return text


async def streamed(stack: "Stack", prompt: str, length: int) -> tuple[str, list[str]]:
    """Text, and the reasons given for its end."""
    async with await RawConnection.open(stack) as connection:
        connection.send(completion(prompt=prompt, max_tokens=length, stream=True))
        status, _ = await connection.head()
        assert status == 200
        events = [event.data async for event in connection.events()]
    assert events[-1] == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return "".join(choice["text"] for choice in choices), reasons


async def begun(stack: "Stack", prompt: str, length: int) -> RawConnection:
    """A stream whose first token has come."""
    connection = await RawConnection.open(stack)
    connection.send(completion(prompt=prompt, max_tokens=length, stream=True))
    assert (await connection.head())[0] == 200
    await connection.some(1)
    return connection


def says_nothing_of_clients(stack: "Stack") -> None:
    output = stack.program.output
    assert CANARY not in output
    assert "Traceback" not in output


async def test_resets_in_the_middle_of_streams(unhurt: "Serve") -> None:
    """Scenario 28: 200 clients reset their connections at once; a bystander's stream goes on."""
    stack = unhurt("--max-num-seqs", "256", "--num-kv-blocks", "65536")  # nobody waits for blocks
    expected = await text_of(stack, "bystander", 1000)
    async with Core.of(stack) as core:
        bystander = asyncio.create_task(streamed(stack, "bystander", 1000))
        clients = await asyncio.gather(*(begun(stack, f"{CANARY} {i}", LENGTH) for i in range(200)))
        await asyncio.gather(*(client.reset() for client in clients))
        assert await bystander == (expected, ["length"])
        assert (await core.at_rest()).generation_tokens < 200 * LENGTH / 10
    says_nothing_of_clients(stack)


async def test_leaving_the_queue(unhurt: "Serve") -> None:
    """Scenario 29: clients without a first token leave; they are off the queue at once, worker or not."""
    stack = unhurt("--max-num-seqs", "1", "--no-hang-detection")
    expected = await text_of(stack, "first", 500)
    worker = stack.pids["worker"][0]
    async with Core.of(stack) as core:
        os.kill(worker, signal.SIGSTOP)
        first = asyncio.create_task(streamed(stack, "first", 500))
        await core.until(lambda stats: stats.num_running == 1)
        clients = [await RawConnection.open(stack) for _ in range(20)]
        for i, client in enumerate(clients):
            client.send(completion(prompt=f"{CANARY} {i}", max_tokens=LENGTH, stream=i % 2 == 0))
        await core.until(lambda stats: stats.num_waiting == len(clients))
        for client in clients:
            await client.close()
        assert (await core.until(lambda stats: stats.num_waiting == 0)).num_running == 1
        os.kill(worker, signal.SIGCONT)
        assert await first == (expected, ["length"])
        await core.at_rest()
    says_nothing_of_clients(stack)


@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_without_a_stream(unhurt: "Serve", n: int) -> None:
    """Scenario 30: clients that wait for a whole answer leave; it is not computed to its end."""
    stack = unhurt()
    async with Core.of(stack) as core:
        clients = [await RawConnection.open(stack) for _ in range(8)]
        for i, client in enumerate(clients):
            client.send(completion(prompt=f"{CANARY} {i}", max_tokens=LENGTH, n=n))
        await core.until(lambda stats: stats.num_running == 8 * n)
        for client in clients:
            await client.close()
        assert (await core.at_rest()).generation_tokens < 8 * n * LENGTH
    says_nothing_of_clients(stack)


async def test_a_reader_that_takes_a_byte_at_a_time(unhurt: "Serve") -> None:
    """Scenario 31: what it asked for ends after --write-stall; others get their answers meanwhile."""
    stack = unhurt("--write-stall", "1")
    expected = await text_of(stack, "bystander", 100)
    n, length = 8, 15_000  # as many steps as there is room for: it must not end before it is noticed
    async with Core.of(stack) as core, await RawConnection.open(stack, receive_buffer=4096) as slow:
        asked: dict[str, Any] = {"n": n, "max_tokens": length, "stream": True, "logprobs": 20}
        slow.send(completion(prompt=CANARY, **asked))
        await core.until(lambda stats: stats.num_running == n)
        while (await core.stats()).num_running:
            await slow.some(1)
            assert await streamed(stack, "bystander", 100) == (expected, ["length"])
        assert (await core.at_rest()).generation_tokens < n * length
        assert b"[DONE]" not in await slow.rest()
    says_nothing_of_clients(stack)


async def test_a_thousand_requests_that_never_end(unhurt: "Serve") -> None:
    """Scenario 32: 1,000 connections say nothing, stop within a line, a header or a body, or send a header
    byte by byte; a good client is served, they are closed."""
    stack = unhurt("--receive-timeout", "3")
    expected = await text_of(stack, "good", 20)
    header, body = b"GET /version HTTP/1.1\r\nx: ", b"POST /tokenize HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"
    starts = (header, b"", b"G", header, body) * 200
    slow = [await RawConnection.open(stack) for _ in starts]
    for connection, start in zip(slow, starts, strict=True):
        connection.send(start)
    answers = asyncio.gather(*(connection.rest() for connection in slow))
    num_served = 0
    while not answers.done():
        assert await text_of(stack, "good", 20) == expected
        num_served += 1
        for connection in slow[::5]:
            connection.send(b"x")
    assert num_served > 1
    for number, answer in enumerate(await answers):
        assert answer.startswith(b"HTTP/1.1 408 ") or not answer
        if number % 5:  # who still sends may be told with a reset
            assert bool(answer) == bool(starts[number]), starts[number]
    await asyncio.gather(*(connection.close() for connection in slow))
    assert (await ask(stack, request("GET", "/health/ready"))).status == 200
    async with Core.of(stack) as core:
        await core.at_rest()
    says_nothing_of_clients(stack)
