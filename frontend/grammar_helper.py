"""The helper: a child of a frontend that judges grammars, because judging may take for ever, or kill.

    Question ──▶ make the text ──▶ read it ──▶ rehearse an answer ──▶ Verdict

It has bounded memory, dies with its frontend, and is killed when it takes too long. What passes here is
read again in the engine core, with the same limits and a larger stack.
"""

import argparse
import resource
import socket
import threading
import time
from random import Random

import msgspec

from protocol.control import die_with_parent
from protocol.grammar import Follower, GrammarError, GrammarReader
from protocol.hardening import harden

from .grammar_messages import LENGTH, Answer, Begun, Question, Verdict
from .grammar_texts import make_text

MEMORY_BYTES = 1 << 30
"""Of address space."""
STACK_BYTES = 16 << 20
REHEARSED_TOKENS = 32
MOST_STEP_S = 0.25
"""CPU time of one token's mask; the usual is below 0.0001."""
MOST_ERROR_CHARS = 400
OOM_SCORE_ADJ = 1000


def judge(reader: GrammarReader, question: Question) -> str:
    """The text for an engine core. Raises GrammarError."""
    text = make_text(question.kind, question.source, question.style)
    rehearse(reader.read(text))
    return text


def rehearse(follower: Follower) -> None:
    """Follow some random answer for a while. Raises GrammarError for what gets stuck or is too expensive."""
    draw = Random(0)
    for _ in range(REHEARSED_TOKENS):
        begun = time.thread_time()
        follower.take_forced()
        bits = 0 if follower.ended else int.from_bytes(follower.mask(), "little")
        if time.thread_time() - begun > MOST_STEP_S:
            raise GrammarError("it is too expensive to follow: make it smaller")
        if follower.ended:
            return
        allowed = [token for token, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
        token = draw.choice(allowed)
        if follower.is_end(token):
            return
        follower.take([token])


class Helper:
    """Answers one question after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decode = msgspec.msgpack.Decoder(Question).decode
        self._reader: GrammarReader | None = None
        self._vocabulary: object = None

    def run(self) -> None:
        """Until the other side is gone."""
        while (head := self._read(LENGTH.size)) is not None:
            (length,) = LENGTH.unpack(head)
            frame = self._read(length)
            if frame is None:
                return
            self._say(self._answer(self._decode(frame)))

    def _answer(self, question: Question) -> Verdict:
        try:
            reader = self._reader_of(question)
            self._say(Begun())
            return Verdict(text=judge(reader, question))
        except GrammarError as error:
            return Verdict(error=str(error)[:MOST_ERROR_CHARS])
        except MemoryError:
            return Verdict(error="it needs too much memory: make it smaller")
        except BaseException:  # the library's panics are no Exceptions
            return Verdict(error="it cannot be read")

    def _reader_of(self, question: Question) -> GrammarReader:
        vocabulary = question.folder, question.vocab_size, question.eos_token_ids
        if self._reader is None or vocabulary != self._vocabulary:
            self._reader, self._vocabulary = GrammarReader(*vocabulary), vocabulary
        return self._reader

    def _say(self, answer: Answer) -> None:
        frame = msgspec.msgpack.encode(answer)
        self._connection.sendall(LENGTH.pack(len(frame)) + frame)

    def _read(self, count: int) -> bytes | None:
        parts: list[bytes] = []
        while count:
            part = self._connection.recv(min(count, 1 << 20))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    harden(OOM_SCORE_ADJ)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    helper = Helper(socket.socket(fileno=arguments.fd))
    thread = threading.Thread(target=helper.run, daemon=True)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
