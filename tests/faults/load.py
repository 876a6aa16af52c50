"""Clients of a server under fault: what they ask in all its variants, and exactly what they were answered.

Reads the HTTP stream itself, so that a second end, a missing one or a row after the last is seen.
Knows nothing of processes and of what is right.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

CANARY = "kittiwake-55e1"
"""Stands in every prompt, and must never stand in a log."""
KEY = "key-of-the-lesser-noddy"
MARK = 3
"""A special token's id: no text of a prompt becomes it, so only prompts made of ids can hold it."""


@dataclass(frozen=True)
class Ask:
    """One request. `body` is what it adds to the model's name and the canary in its prompt."""

    prompt: str | tuple[int, ...]
    body: tuple[tuple[str, Any], ...] = ()
    stream: bool = True
    chat: bool = False

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def num_answers(self) -> int:
        """Sequences that the engine core has of it."""
        return int(dict(self.body).get("n", 1))

    @property
    def num_tokens(self) -> int:
        """Of all its answers; at most."""
        return self.num_answers * int(dict(self.body)["max_tokens"])

    @property
    def document(self) -> dict[str, Any]:
        document = {"model": "tiny", "temperature": 0, "ignore_eos": True, **dict(self.body)}
        if self.stream:
            document |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.chat:
            return document | {"messages": [{"role": "user", "content": f"{CANARY} {self.prompt}"}]}
        prompt = f"{CANARY} {self.prompt}" if isinstance(self.prompt, str) else list(self.prompt)
        return document | {"prompt": prompt}


@dataclass
class Answer:
    """All of a response, whatever the chunks were that it came in."""

    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    error: str = ""
    """Its code; `cut` when the connection ended without a word."""

    def take(self, event: dict[str, Any]) -> None:
        """A chunk, or the whole response."""
        if "error" in event:
            assert not self.error, "a second error"
            self.error = event["error"]["code"]
        for choice in event.get("choices", ()):
            index, message = choice["index"], choice.get("delta") or choice.get("message") or {}
            assert index not in self.finish_reasons, f"choice {index} goes on after its end"
            text = choice.get("text") or message.get("content") or ""
            self.texts[index] = self.texts.get(index, "") + text
            self.logprobs.setdefault(index, []).extend(_rows(choice.get("logprobs")))
            if choice["finish_reason"] is not None:
                self.finish_reasons[index] = choice["finish_reason"]
        if usage := event.get("usage"):
            assert not self.usage, "a second usage"
            self.usage = {key: value for key, value in usage.items() if key.endswith("_tokens")}

    def same(self, other: "Answer") -> bool:
        """Log-probabilities to 1e-4: computed as part of a prompt, sums have another order."""
        mine = (self.texts, self.finish_reasons, self.usage, self.error)
        others = (other.texts, other.finish_reasons, other.usage, other.error)
        return mine == others and _near(self.logprobs, other.logprobs)

    @property
    def complete(self) -> bool:
        return bool(self.texts) and self.texts.keys() == self.finish_reasons.keys() and not self.error


def _near(mine: Any, other: Any) -> bool:
    if isinstance(mine, float) and isinstance(other, float):
        return math.isclose(mine, other, rel_tol=0, abs_tol=1e-4)
    if isinstance(mine, dict) and isinstance(other, dict):
        return mine.keys() == other.keys() and all(_near(mine[key], other[key]) for key in mine)
    if isinstance(mine, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(mine) == len(other) and all(map(_near, mine, other))
    return bool(mine == other)


def _rows(logprobs: dict[str, list[Any]] | None) -> list[Any]:
    """One per token."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return logprobs["content"]
    return list(zip(*(logprobs[name] for name in sorted(logprobs)), strict=True))


class Load:
    """Requests under way at one server."""

    def __init__(self, base_url: str) -> None:
        self.texts: dict[int, str] = {}
        """By place in `asks`: what has come of the first choice so far."""
        self.ports: dict[int, int] = {}
        """By place: the client's own port of the connection."""
        self.num_open = 0
        self._num_streams = 0
        self._base_url = base_url
        self._changed = asyncio.Event()

    async def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """All of them at once, each on a connection of its own."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self.num_open = len(asks)
        self._num_streams = sum(ask.stream for ask in asks)
        async with httpx2.AsyncClient(
            base_url=self._base_url, timeout=60, limits=limits, headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            return await asyncio.gather(*(self._ask(client, place, ask) for place, ask in enumerate(asks)))

    async def begun(self) -> None:
        """Until all that are streams have text; some request must be open then."""
        await self.until(lambda: len(self.texts) == self._num_streams)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until it holds, which may change with each chunk; some request must be open then."""
        while not condition():
            assert self.num_open, "all has ended before the fault"
            await self._changed.wait()
        assert self.num_open, "all has ended before the fault"

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _ask(self, client: httpx2.AsyncClient, place: int, ask: Ask) -> Answer:
        answer = Answer()
        try:
            async with client.stream("POST", ask.path, json=ask.document) as response:
                network = response.extensions["network_stream"]
                self.ports[place] = network.get_extra_info("client_addr")[1]
                if not ask.stream or response.status_code != 200:
                    answer.take(json.loads(await response.aread()))
                else:
                    await self._read(place, response, answer)
        except httpx2.TransportError:
            answer.error = answer.error or "cut"
        finally:
            self.num_open -= 1
            self._notify()
        return answer

    async def _read(self, place: int, response: httpx2.Response, answer: Answer) -> None:
        done = False
        async for line in _lines(response):
            if not line or line.startswith(":"):  # a comment: it is still alive
                continue
            assert not done, f"after [DONE]: {line}"
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                done = True
                continue
            answer.take(json.loads(data))
            if answer.texts.get(0):
                self.texts[place] = answer.texts[0]
            self._notify()
        if not done and not answer.error:
            answer.error = "cut"


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    """By line feeds alone: texts may hold what else Unicode takes for the end of a line."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode()
    if rest:
        yield rest.decode()


Fault = Callable[[Load], Awaitable[object]]
"""Waits until the load is where it wants it, and strikes."""


async def no_fault(_: Load) -> None:
    """Nothing strikes from outside."""


def ask(prompt: str | Sequence[int], max_tokens: int, **body: Any) -> Ask:
    """`stream=False` and `chat=True` are of the request itself, everything else of its body."""
    stream, chat = body.pop("stream", True), body.pop("chat", False)
    whole = {"max_tokens": max_tokens, **body}
    return Ask(prompt if isinstance(prompt, str) else tuple(prompt), _freeze(whole), stream, chat)


def _freeze(body: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in body.items())


SHARED = " ".join(f"The {n}th tern flies from pole to pole." for n in range(12))
"""A prefix of some hundred tokens, so that whoever begins with it finds whole blocks of it."""


def variants(number: int, max_tokens: int) -> list[Ask]:
    """One request of each kind that must survive. Different `number`s ask different things."""
    name = f"tern {number}"
    return [
        ask(f"greedy {name}", max_tokens),
        ask(f"seeded {name}", max_tokens, temperature=4, top_p=0.9, seed=7 + number),
        ask(f"whole {name}", max_tokens, stream=False),
        ask(f"{SHARED} {name}", max_tokens),
        ask(f"several {name}", max_tokens // 3, n=3, temperature=4, seed=number),
        ask(f"scored {name}", max_tokens // 2, logprobs=2),
        ask(f"penalties {name}", max_tokens, repetition_penalty=1.2, presence_penalty=0.5),
        ask(f"{SHARED} chat {name}", max_tokens, chat=True),
        ask(f"ends {name}", max_tokens, ignore_eos=False, min_tokens=max_tokens // 4, temperature=4, seed=3),
        ask(f"echo {name}", max_tokens // 2, echo=True, logprobs=1),
        ask(f"chat scored {name}", max_tokens // 2, chat=True, logprobs=True, top_logprobs=2),
        ask(f"whole pair {name}", max_tokens // 3, stream=False, n=2, temperature=4, seed=number, logprobs=1),
    ]  # fmt: skip


def many(count: int, max_tokens: int) -> list[Ask]:
    """So many, of all variants in turn."""
    asks: list[Ask] = []
    while len(asks) < count:
        asks += variants(len(asks), max_tokens)
    return asks[:count]
