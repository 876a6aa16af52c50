"""More than there is room for, and longer than there is time for: clear refusals, and nobody else is hurt."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.at_rest import Core
from tests.stack.raw_http import RawConnection, Response, ask, completion

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

LENGTH = 200
CANARY = "canary-77aa"


def text(response: Response) -> str:
    assert response.status == 200, response
    (choice,) = response.json["choices"]
    assert choice["finish_reason"] == "length"
    found: str = choice["text"]
    return found


async def test_ten_times_too_many_requests(unhurt: "Serve") -> None:
    """Scenario 39: most are refused with a Retry-After while nothing moves; the others are answered right."""
    stack = unhurt("--max-num-seqs", "4", "--max-num-waiting", "8", "--no-hang-detection")
    questions = [completion(prompt=f"{CANARY} {i}", max_tokens=LENGTH) for i in range(120)]
    worker = stack.pids["worker"][0]
    async with Core.of(stack) as core:
        os.kill(worker, signal.SIGSTOP)
        asked = [asyncio.create_task(ask(stack, question)) for question in questions]
        await core.until(
            lambda stats: (
                stats.num_running + stats.num_waiting + sum(task.done() for task in asked) == len(asked)
            )
        )
        admitted = {i: task for i, task in enumerate(asked) if not task.done()}
        refused = [await task for task in asked if task.done()]
        for response in refused:
            assert (response.status, response.code) == (429, "overloaded")
            assert 1 <= int(response.headers["retry-after"]) <= 60
        os.kill(worker, signal.SIGCONT)
        assert len(admitted) >= 8
        for i, task in admitted.items():
            assert text(await task) == text(await ask(stack, questions[i]))
        assert (await core.at_rest()).crashed_requests == 0
    assert CANARY not in stack.program.output


async def test_prompts_over_the_tokens_that_may_wait(unhurt: "Serve") -> None:
    """Scenario 39: the queue is bounded in prompt tokens, too."""
    stack = unhurt("--max-num-seqs", "1", "--max-waiting-tokens", "64", "--no-hang-detection")
    worker = stack.pids["worker"][0]
    async with Core.of(stack) as core:
        first = asyncio.create_task(ask(stack, completion(prompt="first", max_tokens=8000)))
        await core.until(lambda stats: stats.num_running == 1)
        os.kill(worker, signal.SIGSTOP)
        short = asyncio.create_task(ask(stack, completion(prompt=[7] * 40, max_tokens=5)))
        await core.until(lambda stats: stats.num_waiting == 1)
        response = await ask(stack, completion(prompt=[8] * 40, max_tokens=5))
        assert (response.status, response.code) == (429, "overloaded")
        assert "--max-waiting-tokens" in response.json["error"]["message"]
        os.kill(worker, signal.SIGCONT)
        first.cancel()
        text(await short)
        await core.at_rest()


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": [7] * 300},
        {"prompt": [7] * 100, "max_tokens": 100},
        {"prompt": "x", "max_tokens": 1 << 20},
        {"prompt": "word " * 5000},
    ],
    ids=["prompt", "together", "answer", "text"],
)
async def test_what_can_never_fit(unhurt: "Serve", asked: dict[str, Any]) -> None:
    """Scenario 40: refused at once with 400, also while nothing else is let in."""
    stack = unhurt("--block-size", "16", "--num-kv-blocks", "8", "--max-num-waiting", "0")
    response = await ask(stack, completion(**asked))
    assert (response.status, response.code) == (400, "context_length_exceeded")
    assert "128" in response.json["error"]["message"]
    assert "retry-after" not in response.headers
    async with Core.of(stack) as core:
        assert (await core.at_rest()).prompt_tokens == 0


async def test_deadlines(unhurt: "Serve") -> None:
    """Scenario 41: over while queued: 503; while running: 504, or an error event in a stream."""
    stack = unhurt("--max-num-seqs", "2", "--no-hang-detection")
    worker = stack.pids["worker"][0]

    def question(timeout_s: float, **more: Any) -> bytes:
        headers = {"x-request-timeout": str(timeout_s)}
        return completion(headers=headers, prompt=CANARY, max_tokens=8000, **more)

    async with Core.of(stack) as core, await RawConnection.open(stack) as stream:
        stream.send(question(2, stream=True))
        assert (await stream.head())[0] == 200
        whole = asyncio.create_task(ask(stack, question(2)))
        await core.until(lambda stats: stats.num_running == 2)
        os.kill(worker, signal.SIGSTOP)
        queued = await ask(stack, question(0.2))
        assert (queued.status, queued.code) == (503, "unavailable")
        assert 1 <= int(queued.headers["retry-after"]) <= 60
        response = await whole
        assert (response.status, response.code) == (504, "deadline_exceeded")
        assert response.headers["x-should-retry"] == "false"
        events = []
        with suppress(EOFError):
            async for event in stream.events():
                events.append(event)
        assert events[-1].data["error"]["code"] == "deadline_exceeded"
        assert all("choices" in event.data for event in events[:-1])
        os.kill(worker, signal.SIGCONT)
        await core.at_rest()
        text(await ask(stack, completion(prompt="after", max_tokens=LENGTH)))
        await core.at_rest()
    assert CANARY not in stack.program.output


async def test_the_server_has_a_deadline_of_its_own(unhurt: "Serve") -> None:
    """Scenario 41: --request-timeout holds for all, and a client cannot ask for more."""
    stack = unhurt("--request-timeout", "0.5")
    asked = completion(headers={"x-request-timeout": "1000"}, prompt="x" * 100, max_tokens=16000)
    response = await ask(stack, asked)
    assert (response.status, response.code) == (504, "deadline_exceeded")
    async with Core.of(stack) as core:
        await core.at_rest()
