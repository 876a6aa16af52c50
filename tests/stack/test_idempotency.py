"""A request with an Idempotency-Key goes on without its client, and whoever repeats it gets the rest.

The frontend that serves a stream is killed in its middle; the client comes back, with the key and the id of
the last event that it has, to whichever frontend takes its connection. Nothing may be lost or come twice.
"""

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import DEADLINE_S
from tests.faults.at_rest import Core
from tests.stack.conftest import Stack
from tests.stack.hold import Hold
from tests.stack.raw_http import Event, RawConnection, Response, ask, completion, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Program
    from tests.stack.conftest import Serve

    Launch = Callable[..., Program]

LENGTH = 1500
"""Tokens: a fraction of a second with the stub, far longer than it takes to kill something."""
BROKEN_AT = 20
"""Events after which the connection breaks."""
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"

_keys = (f"key-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def trio(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, launcher: "Callable[[Path], Launch]"
) -> Iterator[Stack]:
    """Three frontends, which may be killed as often as a test likes."""
    folder = tmp_path_factory.mktemp("trio")
    options = {"--run-dir": folder / "run", "--frontends": 3, "--max-restarts": 1000, "--threads": 1}
    flags = [str(one) for option in options.items() for one in option]
    fixed = ["--port", "0", "--worker", "stub"]
    hold = Hold(folder / "hold")
    command = ("scripts.cli", "serve", str(tiny_checkpoint), *fixed, *flags)
    stack = Stack(launcher(folder)(*command, TERN_FAULTS=hold.environ), folder / "run", hold)
    yield stack
    assert stack.ends(signal.SIGTERM) == 0
    assert "key-" not in stack.program.output


def frontend_of(stack: Stack, connection: RawConnection) -> int:
    """Pid of the process at the other end."""
    ports = [int(stack.base_url.rpartition(":")[2]), connection.local_port]
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = (
        fields[9]
        for fields in connections
        if [int(address.rpartition(":")[2], 16) for address in fields[1:3]] == ports
    )
    for pid in stack.pids["frontend"]:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return pid
    raise AssertionError("no frontend has this connection")


def keyed(key: str, fields: dict[str, Any], last_event_id: str = "", **more: Any) -> bytes:
    """Bytes of the request; `fields` with messages are of a chat."""
    headers = {"idempotency-key": key}
    if last_event_id:
        headers["last-event-id"] = last_event_id
    return completion(CHAT if "messages" in fields else "/v1/completions", headers, **fields, **more)


async def read(connection: RawConnection, count: int = 1 << 30) -> list[Event]:
    """The next events of a stream, until so many or its end, however it comes."""
    found: list[Event] = []
    with suppress(EOFError, ConnectionError):
        async for event in connection.events():
            found.append(event)
            if len(found) == count:
                break
    return found


class Told:
    """What events have said: per choice its text, log-probabilities and end; and the usage."""

    def __init__(self, events: list[Event]) -> None:
        assert events[-1].data == "[DONE]"
        self.texts: dict[int, str] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.ends: dict[int, str] = {}
        self.calls: dict[int, str] = {}
        """Name and arguments; their ids follow from the response's, which differs from another request's."""
        self.usage: list[Any] = []
        for event in events[:-1]:
            assert "choices" in event.data, event
            for choice in event.data["choices"]:
                self._take(choice)
            if event.data.get("usage") is not None:
                self.usage.append(event.data["usage"]["completion_tokens"])

    def _take(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        assert index not in self.ends, f"choice {index} goes on after its end"
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        self.texts[index] = self.texts.get(index, "") + text
        for call in choice.get("delta", {}).get("tool_calls", ()):
            function = call["function"]
            said = function.get("name", "") + function.get("arguments", "")
            self.calls[index] = self.calls.get(index, "") + said
        if (logprobs := choice["logprobs"]) is not None:
            rows = logprobs.get("content") or list(zip(*(logprobs[k] for k in sorted(logprobs)), strict=True))
            self.logprobs.setdefault(index, []).extend(rows)
        if choice["finish_reason"] is not None:
            self.ends[index] = choice["finish_reason"]

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        return repr(vars(self))


async def opened(stack: Stack, request: bytes) -> RawConnection:
    """A connection on which the events come; tried again while a dying or a very new frontend is met."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            connection = await RawConnection.open(stack)
            with suppress(EOFError, ConnectionError):
                connection.send(request)
                status, _ = await connection.head()
                if status == 200:
                    return connection
                assert status == 503
            await connection.close()


async def unbroken(stack: Stack, fields: dict[str, Any]) -> Told:
    """What the same request without a key is answered."""
    path = CHAT if "messages" in fields else "/v1/completions"
    async with await opened(stack, completion(path, **fields)) as connection:
        return Told(await read(connection))


async def begin(stack: Stack, fields: dict[str, Any]) -> tuple[str, RawConnection, list[Event]]:
    """A stream under a new key, as far as BROKEN_AT; another, if this machine was so busy that all came."""
    while True:
        key = next(_keys)
        connection = await opened(stack, keyed(key, fields))
        events = await read(connection, BROKEN_AT)
        if events[-1].data != "[DONE]":
            return key, connection, events
        await connection.close()


async def go_on(stack: Stack, request: bytes, count: int = 1 << 30) -> list[Event]:
    """On a new connection, until the end or so many events."""
    async with await opened(stack, request) as connection:
        return await read(connection, count)


async def answered(stack: Stack, request: bytes) -> Response:
    """By some frontend that lives and is not very new."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with suppress(EOFError, ConnectionError):
                if (response := await ask(stack, request)).status != 503:
                    return response


LONG = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^[a-z]{300}$"}},
        "required": ["text"], "additionalProperties": False}  # fmt: skip
STREAM = {"max_tokens": LENGTH, "stream": True, "stream_options": {"include_usage": True}}
VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "One", **STREAM},
    "seeded": {"prompt": "One", "temperature": 1.5, "seed": 11, **STREAM},
    "several": {"prompt": "Two", "n": 2, "temperature": 1.5, "seed": 5, **STREAM},
    "prompts": {"prompt": ["Two", "Three"], **STREAM},
    "own end": {"prompt": "End", "ignore_eos": False, "min_tokens": LENGTH // 2, **STREAM},
    "scored": {"prompt": "Four", "logprobs": 2, **STREAM},
    "echoed": {"prompt": "Four", "echo": True, "logprobs": 1, **STREAM},
    "chat": {"messages": [{"role": "user", "content": "Five"}], **STREAM},
    "scored chat": {
        "messages": [{"role": "user", "content": "Six"}],
        "logprobs": True, "top_logprobs": 1, "n": 2, **STREAM,
    },
    "calls": {
        "messages": [{"role": "user", "content": "Seven"}], "ignore_eos": False, "n": 2, **STREAM,
        "tools": [{"type": "function", "function": {"name": "write", "parameters": LONG}}],
        "tool_choice": "required", "parallel_tool_calls": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
async def test_the_frontend_of_a_stream_is_killed(trio: Stack, variant: str) -> None:
    fields = VARIANTS[variant]
    expected = await unbroken(trio, fields)
    key, connection, events = await begin(trio, fields)
    os.kill(frontend_of(trio, connection), signal.SIGKILL)
    await connection.close()
    rest = await go_on(trio, keyed(key, fields, events[-1].id))
    assert len({event.id for event in [*events, *rest[:-2]]}) == len(events) + len(rest) - 2
    assert Told(events + rest) == expected
    if "tools" in fields:
        texts = [json.loads(call.removeprefix("write"))["text"] for call in expected.calls.values()]
        assert [len(text) for text in texts] == [300] * fields["n"]


async def test_a_stop_string_in_the_part_that_was_held_back(trio: Stack) -> None:
    text = (await unbroken(trio, VARIANTS["greedy"])).texts[0]
    place = len(text) // 2
    fields = {**VARIANTS["greedy"], "stop": [text[place : place + 30]]}
    expected = await unbroken(trio, fields)
    assert expected.ends == {0: "stop"}
    key, connection, events = await begin(trio, fields)
    os.kill(frontend_of(trio, connection), signal.SIGKILL)
    await connection.close()
    assert Told(events + await go_on(trio, keyed(key, fields, events[-1].id))) == expected
    assert (await answered(trio, keyed(key, {**fields, "seed": 1}))).status == 409, "the key is forgotten"
    assert Told(await go_on(trio, keyed(key, fields))) == expected


@pytest.mark.parametrize("others", [["engine_core"], ["worker"], ["engine_core", "worker"]], ids=" ".join)
async def test_all_else_is_killed_in_between(trio: Stack, others: list[str]) -> None:
    fields = VARIANTS["several"]
    expected = await unbroken(trio, fields)
    key, connection, events = await begin(trio, fields)
    os.kill(frontend_of(trio, connection), signal.SIGKILL)
    for kind in others:
        trio.kill(kind)
    await connection.close()
    assert Told(events + await go_on(trio, keyed(key, fields, events[-1].id))) == expected
    trio.wait_ready()


async def test_again_and_again(trio: Stack) -> None:
    fields = VARIANTS["scored"]
    expected = await unbroken(trio, fields)
    key, connection, events = await begin(trio, fields)
    await connection.reset()
    while events[-1].data != "[DONE]":
        events += await go_on(trio, keyed(key, fields, events[-1].id), count=BROKEN_AT)
    assert Told(events) == expected


async def test_a_second_client_takes_the_stream_over(trio: Stack) -> None:
    fields = VARIANTS["greedy"]
    expected = await unbroken(trio, fields)
    key, first, _ = await begin(trio, fields)
    second = await go_on(trio, keyed(key, fields))
    assert Told(second) == expected
    rest = await read(first)
    assert rest[-1].data == "[DONE]" or rest[-1].data["error"]["code"] == "unavailable"
    await first.close()


@pytest.mark.parametrize(
    "fields", [{"prompt": "Whole"}, {"messages": [{"role": "user", "content": "Whole"}]}]
)
async def test_an_answer_without_a_stream(trio: Stack, fields: dict[str, Any]) -> None:
    fields = {**fields, "max_tokens": 2 * LENGTH, "n": 2, "seed": 3, "temperature": 1.5}
    path, key = CHAT if "messages" in fields else "/v1/completions", next(_keys)
    expected = (await answered(trio, completion(path, **fields))).json
    async with Core.of(trio) as core, await RawConnection.open(trio) as connection:
        before = await core.at_rest()
        trio.hold.after(LENGTH)
        connection.send(keyed(key, fields))
        await core.until(lambda stats: stats.num_running + stats.num_waiting == 2)
        os.kill(frontend_of(trio, connection), signal.SIGKILL)
        trio.hold.release()
        found = (await answered(trio, keyed(key, fields))).json
        assert (found["choices"], found["usage"]["completion_tokens"]) == (
            expected["choices"], expected["usage"]["completion_tokens"]
        )  # fmt: skip
        computed = (await core.at_rest()).generation_tokens - before.generation_tokens
        assert computed <= found["usage"]["completion_tokens"], "computed twice"
        again = (await answered(trio, keyed(key, fields))).json
        assert again["choices"] == expected["choices"]
        assert again["id"] == found["id"]


async def test_a_background_response_outlives_its_frontend(trio: Stack) -> None:
    requests: list[dict[str, Any]] = [
        {"input": f"Tell {i}", "max_output_tokens": LENGTH, "ignore_eos": None} for i in range(8)
    ]
    whole = [(await answered(trio, completion(RESPONSES, **fields))).json for fields in requests]
    longest = max(range(len(whole)), key=lambda i: whole[i]["usage"]["output_tokens"])
    fields, expected = requests[longest], whole[longest]
    async with Core.of(trio) as core, await RawConnection.open(trio) as connection:
        before = await core.at_rest()
        connection.send(completion(RESPONSES, **fields, background=True))
        queued = (await connection.response()).json
        os.kill(frontend_of(trio, connection), signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = (await answered(trio, request("GET", f"{RESPONSES}/{queued['id']}"))).json
                if found["status"] not in ("queued", "in_progress"):
                    break
        computed = (await core.at_rest()).generation_tokens - before.generation_tokens
    assert queued["status"] == "queued"
    assert found["status"] == expected["status"]
    assert found["output"][0]["content"] == expected["output"][0]["content"]
    assert found["usage"]["output_tokens"] == expected["usage"]["output_tokens"] > 200
    assert computed <= found["usage"]["output_tokens"], "computed twice"


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
async def test_a_key_is_for_one_request(trio: Stack, ended: bool) -> None:
    fields = VARIANTS["greedy"]
    key, connection, _ = await begin(trio, fields)
    if ended:
        await read(connection)
    for other in ({"prompt": "Other"}, {"seed": 1}, {"stream": False, "stream_options": None}):
        response = await answered(trio, keyed(key, {**fields, **other}))
        assert (response.status, response.code) == (409, "idempotency_key_reused")
        assert response.headers["x-should-retry"] == "false"
    chat = await answered(trio, keyed(key, VARIANTS["chat"]))
    assert (chat.status, chat.code) == (409, "idempotency_key_reused")
    assert (await answered(trio, keyed(next(_keys), {"prompt": "Other", "max_tokens": 3}))).status == 200
    await connection.close()


@pytest.mark.parametrize("last_event_id", ["0.1", "x", "-1", str(LENGTH + 1), "9" * 20])
async def test_ids_that_cannot_be(trio: Stack, last_event_id: str) -> None:
    response = await answered(trio, keyed(next(_keys), VARIANTS["greedy"], last_event_id))
    assert (response.status, response.json["error"]["param"]) == (400, "Last-Event-ID")


async def test_after_the_grace_time_a_key_is_new(serve: "Serve") -> None:
    stack = serve("--detach-grace", "0.2", held=True)
    first = await ask(stack, keyed("key", {"prompt": "One", "max_tokens": 20}))
    async with Core.of(stack) as core:
        stack.hold.after(100)
        connection = await RawConnection.open(stack)
        connection.send(keyed("left", {"prompt": "Left", "max_tokens": 10_000}))
        await core.until(lambda stats: stats.num_running == 1)
        await connection.close()
        stack.hold.release()
        assert (await core.until(lambda stats: not stats.detached and not stats.num_running)).steps < 10_000
        await core.at_rest()
        second = await ask(stack, keyed("key", {"prompt": "Two", "max_tokens": 20}))
        assert second.status == 200
        assert second.json["choices"] != first.json["choices"]
