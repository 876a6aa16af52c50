"""Grammars at the door: what a client wants its answer to follow is judged before anything else sees it.

    compile ──known──▶ its text            ┌─▶ refused, 400: wrong, too large, too slow, or the helper's end
        └────────────▶ a helper judges it ─┼─▶ the text that the engine core follows
                                           └─▶ the helper was killed by others: once more, then 500

Helpers are child processes (grammar_helper.py): none before the first grammar, at most `MOST_HELPERS`, and
none again when nobody has asked for a while.
"""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.errors import InternalError, InvalidRequest, Overloaded
from protocol.messages import EngineFacts

from .grammar_messages import LENGTH, Answer, Begun, JsonStyle, Kind, Question, Verdict

MOST_HELPERS = 4
MOST_WAITING = 256
"""Questions; more are refused with 429."""
MOST_SOURCE_BYTES = 256 << 10
START_S = 60.0
"""For a helper to start and to load the vocabulary: not the client's fault."""
JUDGE_S = 3.0
IDLE_S = 60.0
"""After which a helper that nobody needs is ended."""
MOST_KNOWN = 256
MOST_KNOWN_CHARS = 8 << 20
OWN_FAULT = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}
"""Signals that a process brings upon itself: the question did it. Others come from outside."""
_PACKAGES = Path(__file__).resolve().parent.parent


class Constraint(Struct, frozen=True):
    """What an answer has to follow, and which field of the request says so."""

    param: str
    kind: Kind
    source: str
    style: JsonStyle = JsonStyle()


class _Killed(Exception):
    """The helper is gone, by nobody's fault here."""


class _Process:
    """One helper."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        module = f"{__package__}.grammar_helper"
        arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        secretless = {name: value for name, value in os.environ.items() if not name.startswith("TERN_API")}
        path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a panic quotes what it panicked about
                pass_fds=(theirs.fileno(),),
                env=secretless | {"PYTHONPATH": path, "RAYON_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self.used_at = 0.0

    async def ask(self, question: Question) -> Verdict:
        """Raises _Killed, or InvalidRequest for a question that it did not survive. Then it is dead."""
        frame = msgspec.msgpack.encode(question)
        loop = asyncio.get_running_loop()
        begun = False
        try:
            async with asyncio.timeout(START_S) as limit:
                await loop.sock_sendall(self._socket, LENGTH.pack(len(frame)) + frame)
                while isinstance(answer := await self._receive(), Begun):
                    begun = True
                    limit.reschedule(loop.time() + JUDGE_S)
                return answer
        except TimeoutError:
            self.kill()
            await asyncio.to_thread(self.reap)
            if not begun:
                raise _Killed from None
            raise InvalidRequest("it takes too long to read: make it smaller") from None
        except (OSError, EOFError):
            self.kill()
            number = -await asyncio.to_thread(self._process.wait)
            if number in OWN_FAULT:
                raise InvalidRequest("it needs too much memory or is nested too deeply") from None
            raise _Killed from None
        except asyncio.CancelledError:
            self.kill()  # it is in the middle of something that nobody waits for
            loop.run_in_executor(None, self.reap)
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """It is gone; nothing is left of it."""
        self._socket.close()
        self._process.kill()

    def reap(self) -> None:
        self._process.wait()

    async def _receive(self) -> Answer:
        (length,) = LENGTH.unpack(await self._read(LENGTH.size))
        return self._decoder.decode(await self._read(length))

    async def _read(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = await asyncio.get_running_loop().sock_recv(self._socket, min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Grammars:
    """Of one frontend; belongs to its event loop."""

    def __init__(self, folder: str) -> None:
        """`folder` holds tokenizer.json."""
        self._folder = folder
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._num_known_chars = 0
        self._idle: list[_Process] = []
        self._places = asyncio.Semaphore(MOST_HELPERS)
        self._num_waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    async def compile(
        self, kind: Kind, source: str, facts: EngineFacts, param: str, style: JsonStyle | None = None
    ) -> str:
        """What `Submit.grammar` has to be. Raises InvalidRequest that names `param`, or a ServiceError."""
        style = style or JsonStyle()
        if len(source) > MOST_SOURCE_BYTES or len(source.encode()) > MOST_SOURCE_BYTES:
            raise InvalidRequest(f"{param}: longer than {MOST_SOURCE_BYTES} bytes", param=param)
        question = Question(self._folder, facts.vocab_size, facts.eos_token_ids, kind, source, style)
        digest = hashlib.sha256(msgspec.msgpack.encode(question)).digest()
        if (text := self._known.get(digest)) is not None:
            self._known.move_to_end(digest)
            return text
        if self._num_waiting >= MOST_WAITING:
            raise Overloaded("too many new grammars at once: try again later", retry_after_s=JUDGE_S)
        self._num_waiting += 1
        try:
            async with self._places:
                verdict = await self._ask(question)
        except InvalidRequest as error:
            raise InvalidRequest(f"{param}: {error.message}", param=param) from None
        finally:
            self._num_waiting -= 1
        if verdict.error:
            raise InvalidRequest(f"{param}: {verdict.error}", param=param)
        self._remember(digest, verdict.text)
        return verdict.text

    def close(self) -> None:
        """End all helpers."""
        if self._timer is not None:
            self._timer.cancel()
        for helper in self._idle:
            helper.kill()
            helper.reap()
        self._idle.clear()

    async def _ask(self, question: Question) -> Verdict:
        for _ in range(2):
            try:
                helper = self._free_helper()
                verdict = await helper.ask(question)
            except _Killed:
                continue
            self._keep(helper)
            return verdict
        raise InternalError("the process that reads grammars was killed twice while it read this one")

    def _free_helper(self) -> _Process:
        """One that has not died while it was idle."""
        while self._idle:
            helper = self._idle.pop()
            if helper.alive:
                return helper
            helper.kill()
        return _Process()

    def _keep(self, helper: _Process) -> None:
        loop = asyncio.get_running_loop()
        helper.used_at = loop.time()
        self._idle.append(helper)
        if self._timer is None:
            self._timer = loop.call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for helper in [one for one in self._idle if one.used_at <= loop.time() - IDLE_S]:
            self._idle.remove(helper)
            helper.kill()
            loop.run_in_executor(None, helper.reap)
        if self._idle:
            self._timer = loop.call_later(IDLE_S, self._end_idle)

    def _remember(self, digest: bytes, text: str) -> None:
        with suppress(KeyError):
            self._num_known_chars -= len(self._known.pop(digest))
        self._known[digest] = text
        self._num_known_chars += len(text)
        while len(self._known) > MOST_KNOWN or self._num_known_chars > MOST_KNOWN_CHARS:
            _, old = self._known.popitem(last=False)
            self._num_known_chars -= len(old)
