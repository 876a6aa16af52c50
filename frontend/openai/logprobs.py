"""Log-probabilities in the two shapes that OpenAI gives them. -inf becomes -9999.0: JSON has no infinity."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from protocol.stream import TokenLogprob

from ..answer import TokenEntry

FLOOR = -9999.0


class Vocabulary(Protocol):
    """The part of a Tokenizer that names tokens."""

    def token_bytes(self, token_id: int) -> bytes: ...


class TokenIdNames:
    """Tokens named by their ids (`return_tokens_as_token_ids`)."""

    def token_bytes(self, token_id: int) -> bytes:
        return b"token_id:%d" % token_id


class PromptTokenLogprob(Struct, frozen=True):
    """As vLLM reports it."""

    logprob: float
    rank: int | None
    """1 is the likeliest."""
    decoded_token: str


PromptLogprobsBody = list[dict[int, PromptTokenLogprob] | None]
"""Per token of the prompt, by token id: itself, and the likeliest in its place. The first has none."""


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


def prompt_logprobs(
    prompt: Sequence[int], found: Mapping[int, TokenLogprob], width: int, vocabulary: Vocabulary
) -> PromptLogprobsBody:
    """`found`: by position. Behind the token that stands there `width` of the likeliest, best first."""

    def one(token_id: int, value: float, rank: int | None) -> PromptTokenLogprob:
        return PromptTokenLogprob(_finite(value), rank, _spell(vocabulary.token_bytes(token_id)))

    body: PromptLogprobsBody = []
    for position, token_id in enumerate(prompt):
        if (logprob := found.get(position)) is None:
            body.append(None)
            continue
        ranks = {top_id: rank for rank, (top_id, _) in enumerate(logprob.top, 1)}
        rank = logprob.rank if logprob.rank is not None else ranks.get(token_id)
        entry = {token_id: one(token_id, logprob.logprob, rank)}
        for top_id, value in logprob.top[:width]:
            entry.setdefault(top_id, one(top_id, value, ranks[top_id]))
        body.append(entry)
    return body


def _top(token_id: int, value: float, vocabulary: Vocabulary) -> TopLogprob:
    spelled = vocabulary.token_bytes(token_id)
    return TopLogprob(_spell(spelled), _finite(value), list(spelled))


def _spell(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else FLOOR
