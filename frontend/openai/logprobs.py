"""Log-probabilities in the two shapes that OpenAI gives them. -inf becomes -9999.0: JSON has no infinity."""

import math
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from ..answer import TokenEntry

FLOOR = -9999.0


class Vocabulary(Protocol):
    """The part of a Tokenizer that names tokens."""

    def token_bytes(self, token_id: int) -> bytes: ...


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    """The token may be a part of a character, which `token` cannot show."""


class ChatTokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """Columns, one item per token. Equal spellings of different tokens collapse in `top_logprobs`."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def chat_logprobs(entries: Sequence[TokenEntry], width: int, vocabulary: Vocabulary) -> ChatLogprobs:
    """`width` of the likeliest tokens per token, best first."""
    content = []
    for entry in entries:
        assert entry.logprob is not None, "every token of a chat answer is sampled"
        top = [_top(token_id, value, vocabulary) for token_id, value in entry.logprob.top[:width]]
        one = _top(entry.token_id, entry.logprob.logprob, vocabulary)
        content.append(ChatTokenLogprob(one.token, one.logprob, one.bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(
    entries: Sequence[TokenEntry], width: int, vocabulary: Vocabulary, *, offset: int = 0
) -> CompletionLogprobs:
    """The first token of a prompt has none. `top_logprobs` always hold the token itself, too."""
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token_id, value in (*entry.logprob.top[:width], (entry.token_id, entry.logprob.logprob)):
            top.setdefault(_spell(vocabulary.token_bytes(token_id)), _finite(value))
        tops.append(top)
    return CompletionLogprobs(
        text_offset=[offset + entry.offset for entry in entries],
        token_logprobs=[_finite(e.logprob.logprob) if e.logprob is not None else None for e in entries],
        tokens=[_spell(vocabulary.token_bytes(entry.token_id)) for entry in entries],
        top_logprobs=tops,
    )


def _top(token_id: int, value: float, vocabulary: Vocabulary) -> TopLogprob:
    spelled = vocabulary.token_bytes(token_id)
    return TopLogprob(_spell(spelled), _finite(value), list(spelled))


def _spell(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else FLOOR
