"""Users: they ask without a pause, each in a manner of its own, and check every answer.

plain     stream or whole answer                  must be right, unless its frontend was made to die
keyed     the same with an Idempotency-Key        must be right, whatever died
rude      hangs up in the middle                  what has come must be a beginning of the right one
direct    EngineClient, token ids                 must be right, whatever died
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocol.client import EngineClient
from protocol.errors import TernError

from .http_answer import Broken, HttpAnswer
from .questions import Question
from .tally import Tally

PATIENCE_S = 120.0
"""For one answer, faults included."""
ATTACH_PATIENCE_S = 60.0
_QUESTIONS_PER_ATTACHMENT = 20
_MOST_ATTEMPTS = 50
_MANNERS = {"stream": 8, "whole": 2, "keyed stream": 4, "keyed whole": 1, "rude": 3}
"""Of HTTP users, and how often."""


@dataclass(frozen=True)
class Reference:
    """A question and its answer on the undisturbed server."""

    question: Question
    text: str
    finish_reason: str
    num_tokens: int
    token_ids: tuple[int, ...]
    """For direct users."""


@dataclass
class Users:
    """All users of one server. `stopping` ends them after their present questions."""

    host: str
    port: int
    endpoint_file: str
    tally: Tally
    frontend_died_since: Callable[[float], bool]
    """Whether a frontend was made to die after a time (time.monotonic)."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def learn(self, questions: Sequence[Question], at_once: int) -> list[Reference]:
        """The right answers. Raises what goes wrong: there is no fault yet."""
        gate = asyncio.Semaphore(at_once)
        client = await EngineClient.attach(self.endpoint_file, timeout_s=ATTACH_PATIENCE_S)

        async def one(question: Question) -> Reference:
            async with gate:
                answer = HttpAnswer()
                await answer.ask(self.host, self.port, question.body(stream=False))
                if answer.error or not answer.done:
                    raise RuntimeError(f"a reference question was not answered: {answer.error}")
                stream = client.submit(question.prompt, question.sampling())
                async for _ in stream:
                    pass
            return Reference(
                question, answer.text, answer.finish_reason, answer.num_tokens, tuple(stream.token_ids)
            )

        try:
            return await asyncio.gather(*map(one, questions))
        finally:
            await client.close()

    async def run(self, references: Sequence[Reference], seed: int, *, direct: bool) -> None:
        """One user, until stopped."""
        generator = random.Random(seed)
        while not self.stopping.is_set():
            try:
                if direct:
                    await self._attach_and_ask(references, generator)
                else:
                    reference = generator.choice(references)
                    [manner] = generator.choices([*_MANNERS], [*_MANNERS.values()])
                    async with asyncio.timeout(PATIENCE_S):
                        await self._ask(reference, manner, generator.randint(1, 8))
            except TimeoutError:
                self.tally.problem("lost", f"no end within {PATIENCE_S:g} s")
            except Exception as error:
                self.tally.problem("failed", f"{type(error).__name__}: {error}")

    # ── over HTTP ───────────────────────────────────────────────────────────────────────────────

    async def _ask(self, reference: Reference, manner: str, most_events: int) -> None:
        key = str(uuid.uuid4()) if manner.startswith("keyed") else ""
        body = reference.question.body(stream=manner not in ("whole", "keyed whole"))
        answer = HttpAnswer()
        for _ in range(_MOST_ATTEMPTS):
            began = time.monotonic()
            try:
                most = most_events if manner == "rude" else 0
                await answer.ask(self.host, self.port, body, key, most)
                if not answer.done and not answer.error and manner != "rude":
                    raise Broken(f"a clean close without [DONE] after {answer.num_events} events")
            except Broken as broken:
                if not self.frontend_died_since(began):
                    self.tally.problem("broken", f"{manner}: no frontend had died: {broken}")
                    return
                self._check_beginning(reference, answer)
                if not key:
                    self.tally.broken += 1
                    return
                self.tally.resumed += 1
                continue
            break
        if answer.error:
            self.tally.problem("failed", f"{manner}: {answer.error}")
        elif manner == "rude" and not answer.done:
            if self._check_beginning(reference, answer):
                self.tally.done[manner] += 1
        elif self._check(reference, answer, manner):
            self.tally.done[manner] += 1
            self.tally.tokens += answer.num_tokens

    def _check(self, reference: Reference, answer: HttpAnswer, manner: str) -> bool:
        return (
            self.tally.compare(f"text, {manner}", answer.text, reference.text)
            and self.tally.compare(f"tokens, {manner}", answer.num_tokens, reference.num_tokens)
            and self.tally.compare(f"finish, {manner}", answer.finish_reason, reference.finish_reason)
        )

    def _check_beginning(self, reference: Reference, answer: HttpAnswer) -> bool:
        beginning = reference.text[: len(answer.text)]
        return self.tally.compare("beginning of a text", answer.text, beginning)

    # ── without HTTP ────────────────────────────────────────────────────────────────────────────

    async def _attach_and_ask(self, references: Sequence[Reference], generator: random.Random) -> None:
        client = await EngineClient.attach(self.endpoint_file, timeout_s=ATTACH_PATIENCE_S)
        try:
            for _ in range(_QUESTIONS_PER_ATTACHMENT):
                if self.stopping.is_set():
                    return
                reference = generator.choice(references)
                async with asyncio.timeout(PATIENCE_S):
                    await self._ask_directly(client, reference)
        finally:
            await client.close()

    async def _ask_directly(self, client: EngineClient, reference: Reference) -> None:
        stream = client.submit(reference.question.prompt, reference.question.sampling())
        try:
            async for _ in stream:
                pass
        except TernError as error:
            self.tally.problem("failed", f"direct: {error.code}: {error.message}")
            return
        if self.tally.compare("ids, direct", stream.token_ids, [*reference.token_ids]):
            self.tally.done["direct"] += 1
            self.tally.tokens += len(stream.token_ids)
