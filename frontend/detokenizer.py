"""Detokenizer: ids to text, as they arrive, never splitting a character. Knows nothing of stop strings.

The deltas of `push` and the rest of `flush`, one after the other, are the decoding of all ids at once.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, the bundled model) take the fast path: a table from id to
text, or to bytes where a token is a part of a character, 0.2 µs a token. Others (SentencePiece) decode a
short window again for every token, about 4 µs.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "�"
MAX_HELD_TOKENS = 8
"""A character has at most 4 bytes, so tokens beyond that hold an invalid one: let it go."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer(Protocol):
    """One answer's text. `push` returns what is certain; `flush`, once at the end, what was held back."""

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: visible Latin-1 stands for its own byte, the others follow from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


class TokenBytes(dict[int, bytes]):
    """id → the bytes it stands for, looked up when first seen. Hidden and unknown ids stand for none."""

    def __init__(
        self, name_of: Callable[[int], str | None], hidden: frozenset[int], *, byte_level: bool
    ) -> None:
        super().__init__()
        self._name_of = name_of
        self._hidden = hidden
        self._byte_level = byte_level

    def __missing__(self, token_id: int) -> bytes:
        name = None if token_id in self._hidden else self._name_of(token_id)
        if name is None:
            return self.setdefault(token_id, b"")
        return self.setdefault(token_id, self._spell(name))

    def _spell(self, name: str) -> bytes:
        if not self._byte_level:
            byte = _BYTE_TOKEN.fullmatch(name)
            return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
        try:
            return bytes([_ALPHABET[char] for char in name])
        except KeyError:  # an added token, spelled as it is
            return name.encode()


class TokenTexts(dict[int, str | None]):
    """id → its text, if it consists of whole characters; otherwise None."""

    def __init__(self, table: TokenBytes) -> None:
        super().__init__()
        self.table = table

    def __missing__(self, token_id: int) -> str | None:
        try:
            return self.setdefault(token_id, self.table[token_id].decode())
        except UnicodeDecodeError:
            return self.setdefault(token_id, None)


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are byte strings."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._pending = b""
        """The first bytes of a character whose other bytes are still to come."""

    def push(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) == 1 and not self._pending:  # nearly always
            text = self._texts[token_ids[0]]
            if text is not None:
                return text
        table = self._texts.table
        data = self._pending + b"".join([table[token_id] for token_id in token_ids])
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        pending, self._pending = self._pending, b""
        return pending.decode("utf-8", "replace")


class WindowDetokenizer:
    """For vocabularies whose tokens look different at the start of a text.

        ids   … │ a b c │ d e      the text of "a b c d e" minus the text of "a b c" is the delta of "d e";
            prefix ▲   read ▲      a b c is the last stretch that showed anything

    Exact for valid UTF-8; of a byte run that turns out invalid later, the start may already be out.
    """

    def __init__(self, decode: Callable[[list[int]], str], hidden: frozenset[int] = frozenset()) -> None:
        """`hidden` ids are passed over."""
        self._decode = decode
        self._hidden = hidden
        self._window: list[int] = []
        self._read = 0
        self._shown = ""
        """Text of window[:read]."""

    def push(self, token_ids: Sequence[int]) -> str:
        deltas = [self._push(token_id) for token_id in token_ids if token_id not in self._hidden]
        return "".join(deltas)

    def flush(self) -> str:
        return self._decode(self._window)[len(self._shown) :]

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        complete = not text.endswith(REPLACEMENT) or len(self._window) - self._read > MAX_HELD_TOKENS
        if len(text) <= len(self._shown) or not complete:
            return ""
        delta = text[len(self._shown) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._shown = self._decode(self._window)
        return delta
