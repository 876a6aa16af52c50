"""SamplingParams: how the next token is chosen. The ranges live in the types, so a decoder enforces them.

Everything here is a function of (prompt ids, output ids, these parameters) only: a request that is
replayed after a crash draws the same tokens. Stop *strings* are absent on purpose: they concern text,
and text exists only in the frontend.
"""

from typing import Annotated

from msgspec import Meta, Struct

MAX_TOKENS = 1 << 20
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 256
MAX_ALLOWED_TOKENS = 1 << 13
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 64
MAX_SEED = (1 << 63) - 1

NOT_WITH_GRAMMAR = {
    "min_tokens": "says where the answer may end",
    "ignore_eos": "says where the answer may end",
    "allowed_token_ids": "says what may follow",
    "bad_words": "says what may follow",
}
"""Fields that a grammar leaves no room for, some of whose tokens are never sampled: (field, what it says)."""

TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]


class SamplingParams(Struct, frozen=True, array_like=True, gc=False):
    """Defaults sample from the model's own distribution; `temperature=0` is greedy."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Drop tokens less likely than `min_p` times the likeliest."""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, 2019)."""
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] = 0
    """Always set: whoever accepts a request without a seed draws one."""
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    """End-of-sequence and stop tokens are impossible before this many output tokens."""
    ignore_eos: bool = False
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)] = ()
    """Stop after one of these, besides the model's own end-of-sequence tokens."""
    logit_bias: Annotated[
        tuple[tuple[TokenId, Annotated[float, Meta(ge=-100, le=100)]], ...], Meta(max_length=MAX_LOGIT_BIAS)
    ] = ()
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Report the sampled token's log-probability and this many likeliest; None reports nothing."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """The same for every prompt token but the first; such a request skips prefix-cache hits."""
    allowed_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_ALLOWED_TOKENS)] = ()
    """Not empty: only these are possible, the end of sequence included."""
    bad_words: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_BAD_WORD_TOKENS)], ...],
        Meta(max_length=MAX_BAD_WORDS),
    ] = ()
    """Sequences of which the last token is impossible where the output ends with all before it."""
    logprob_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_LOGPROBS)] = ()
    """Not empty, and `logprobs` is not None: these are reported, in this order, before the likeliest."""
