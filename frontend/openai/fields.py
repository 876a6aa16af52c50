"""The request fields that all generating endpoints share, and what they mean to the engine core.

Defaults, in this order: the request, the checkpoint's generation_config.json, OpenAI's.
A `seed` may be any 64-bit integer; its sign bit is dropped. Choice i of a prompt uses seed + i.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.messages import EngineFacts
from protocol.sampling import (
    MAX_ALLOWED_TOKENS,
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_TOKENS,
    MAX_TOKENS,
    SamplingParams,
    TokenId,
)

from ..service import GenerationDefaults, Service
from ..streams import Prompt, Wish
from ..tokenizer import Tokenizer
from .headers import LAST_EVENT_ID, Terms
from .structured import ConstrainedFields

MAX_N = 16
MAX_STOPS = 16
CHARS_PER_TOKEN = 16
"""Longer texts than this many characters per token of context cannot fit, and are not even tokenized."""

ALL_CHOICES_ALLOWED_TOKENS = 1 << 20
"""Over all answers of a request: each is a request of its own to the engine core."""

StopString = Annotated[str, Meta(min_length=1, max_length=256)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    """One more event before the end, with the usage and no choices."""
    continuous_usage_stats: bool | None = None
    """The usage so far in every event (vLLM)."""


class GenerationFields(ConstrainedFields, frozen=True, kw_only=True):
    """null and absent mean the same everywhere."""

    model: str | None = None
    """One of /v1/models; the first of them if it is left out."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    """Answers to each prompt."""
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """No end of sequence, stop token or stop string before."""
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    """0: always the likeliest token."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    """0 and -1: all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Tokens less likely than this times the likeliest are not sampled."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    """The same one gives the same answer; without one it is drawn."""
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    """Besides the model's own ends of sequence."""
    include_stop_str_in_output: bool | None = None
    """And what a stop token stands for."""
    ignore_eos: bool | None = None
    """The model's own end of sequence does not end the answer."""
    skip_special_tokens: bool | None = None
    """false: the answer shows them."""
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=MAX_LOGIT_BIAS, extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
        ]
        | None
    ) = None
    """Added to the logits of these token ids."""
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_ALLOWED_TOKENS)] | None = (
        None
    )
    """Nothing else is sampled, not even the end of sequence unless it is among them."""
    bad_words: Annotated[list[BadWord], Meta(max_length=MAX_BAD_WORDS // 2)] | None = None
    """Never written, neither at a word's beginning (with a space before) nor within: as their tokens."""
    prompt_logprobs: NumLogprobs | None = None
    """Log-probabilities of the prompt's tokens, with so many likeliest ones beside each (vLLM's shape)."""
    logprob_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_LOGPROBS)] | None = None
    """The answer's log-probabilities show these tokens instead of the likeliest."""
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens as `token_id:17`."""
    return_token_ids: bool | None = None
    """The ids of prompt and answer, beside the text."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    """Only the last so many tokens of the prompt are read; -1: as many as fit beside the answer."""
    stream_interval: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    """Events after the first wait for so many tokens."""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    """Lower runs first."""
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    """Only requests with the same one share cached prefixes."""

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


def make_wish(
    request: GenerationFields,
    prompts: Sequence[Prompt],
    facts: EngineFacts,
    service: Service,
    *,
    prompt_field: str,
    terms: Terms,
    max_tokens: int | None,
    default_max_tokens: int,
    logprobs: int | None,
    echo_logprobs: int | None = None,
    num_choices: int | None = None,
    silent: bool = False,
    max_tokens_field: str = "max_tokens",
) -> Wish:
    """Check what types cannot say, and fill in defaults. Raises InvalidRequest.

    `default_max_tokens` of 0: what fits the context. `echo_logprobs`: of the prompt, which is sent back.
    `num_choices` per prompt, if not n. Errors name `prompt_field` and `max_tokens_field`.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options: only allowed with stream: true", param="stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("prompt_logprobs: not together with stream: true", param="prompt_logprobs")
    for prompt in prompts:
        _check_ids(prompt.token_ids, facts, prompt_field)
    _check_ids(request.stop_token_ids or (), facts, "stop_token_ids")
    _check_ids(tuple(request.logit_bias or ()), facts, "logit_bias")
    _check_ids(request.logprob_token_ids or (), facts, "logprob_token_ids")
    if request.logprob_token_ids and logprobs is None:
        raise InvalidRequest("logprob_token_ids: only allowed with logprobs", param="logprob_token_ids")
    n = num_choices or request.n or 1
    allowed_token_ids = _allowed(request, facts, len(prompts) * n)
    bad_words = _bad_words(request.bad_words or (), service.tokenizer)
    wanted = [width for width in (request.prompt_logprobs, echo_logprobs) if width is not None]
    if request.seed is not None:
        seed = request.seed & MAX_SEED
    else:
        seed = service.draw_seed() if terms.key is None else terms.key.seed
    sampling = [
        _sampling(
            request,
            service.defaults,
            answer_budget(
                len(prompt.token_ids),
                max_tokens,
                default_max_tokens,
                facts.max_model_len,
                prompt_field,
                max_tokens_field,
            ),
            seed,
            logprobs=logprobs,
            prompt_logprobs=max(wanted, default=None),
            allowed_token_ids=allowed_token_ids,
            bad_words=bad_words,
        )
        for prompt in prompts
    ]
    positions = _positions(request, terms, [one.max_tokens for one in sampling for _ in range(n)])
    return Wish(
        sampling=tuple(sampling),
        n=n,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        priority=request.priority or 0,
        tenant=terms.tenant,
        cache_salt=request.cache_salt or "",
        adapter=service.adapter(request.model),
        silent=silent,
        stream_interval=request.stream_interval or 1,
        timeout_s=terms.timeout_s,
        key=terms.key,
        positions=positions,
    )


def check_embedded(ids: Sequence[int], facts: EngineFacts, param: str) -> None:
    """Of an input that is to become a vector. Raises InvalidRequest."""
    if len(ids) >= facts.max_model_len:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {facts.max_model_len} tokens, and an input may have one "
            f"fewer, but has {len(ids)}; shorten it",
            param=param,
        )
    _check_ids(ids, facts, param)


def check_text_length(num_chars: int, facts: EngineFacts, param: str) -> None:
    """Refuse at once what cannot fit the context. Raises ContextLengthExceeded."""
    if num_chars > facts.max_model_len * CHARS_PER_TOKEN:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {facts.max_model_len} tokens, and the prompt has "
            f"{num_chars} characters, more than could ever fit; the prompt is too long: shorten it",
            param=param,
        )


def _sampling(
    request: GenerationFields,
    defaults: GenerationDefaults,
    max_tokens: int,
    seed: int,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
    allowed_token_ids: tuple[int, ...],
    bad_words: tuple[tuple[int, ...], ...],
) -> SamplingParams:
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {min_tokens} is more than the {max_tokens} tokens that the answer may have",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(int(_first(request.top_k, defaults.top_k, 0)), 0),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        seed=seed,
        min_tokens=min_tokens,
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logit_bias=tuple((request.logit_bias or {}).items()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        allowed_token_ids=allowed_token_ids,
        bad_words=bad_words,
        logprob_token_ids=tuple(request.logprob_token_ids or ()),
    )


def _allowed(request: GenerationFields, facts: EngineFacts, num_choices: int) -> tuple[int, ...]:
    """Raises InvalidRequest."""
    name, ids = "allowed_token_ids", tuple(dict.fromkeys(request.allowed_token_ids or ()))
    _check_ids(ids, facts, name)
    if len(ids) * num_choices > ALL_CHOICES_ALLOWED_TOKENS:
        raise InvalidRequest(f"{name}: {len(ids)} ids are too many for {num_choices} answers", param=name)
    ends = {*facts.eos_token_ids, *(request.stop_token_ids or ())}
    if ids and request.min_tokens and ends.issuperset(ids):
        raise InvalidRequest(f"{name}: all of them end the answer, which min_tokens forbids", param=name)
    return ids


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Ids of each word, as a text begins with it and as it follows a space. Raises InvalidRequest."""
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        bare = word.lstrip()
        for ids in tokenizer.encode_now([bare, f" {bare}"], add_special_tokens=False):
            if not bare or not 1 <= len(ids) <= MAX_BAD_WORD_TOKENS:
                rule = f"{len(ids) if bare else 0} tokens; a word may have 1 … {MAX_BAD_WORD_TOKENS}"
                raise InvalidRequest(f"bad_words[{index}]: {rule}", param=f"bad_words[{index}]")
            found[tuple(ids)] = None
    return tuple(found)


def answer_budget(
    num_prompt_tokens: int,
    asked: int | None,
    default: int,
    context: int,
    prompt_field: str,
    max_tokens_field: str,
) -> int:
    """How many tokens the answer may have. Raises ContextLengthExceeded with both numbers."""
    room = context - num_prompt_tokens
    if room < (asked or 1):
        wanted = "" if asked is None else f" and {asked} for the answer"
        raise ContextLengthExceeded(
            f"this model's maximum context length is {context} tokens, but the request asks for "
            f"{num_prompt_tokens + (asked or 0)}: {num_prompt_tokens} in the prompt{wanted}; "
            # LangChain knows it by these words, not by its code.
            f"the prompt is too long for that: shorten it or lower {max_tokens_field}",
            param=max_tokens_field if asked is not None and room > 0 else prompt_field,
        )
    if asked is not None:
        return asked
    return min(default or room, room, MAX_TOKENS)


def _check_ids(ids: Sequence[int], facts: EngineFacts, param: str) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < facts.vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < facts.vocab_size)
        raise InvalidRequest(
            f"{param}: token id {wrong} is not in the vocabulary, which is 0 … {facts.vocab_size - 1}",
            param=param,
        )


def _positions(request: GenerationFields, terms: Terms, most: Sequence[int]) -> tuple[int, ...]:
    """`most`: how many tokens each choice may have. Raises InvalidRequest."""
    positions, name = terms.positions, LAST_EVENT_ID
    if positions is None:
        return ()
    if not request.stream:
        raise InvalidRequest(f"{name}: only allowed with stream: true", param=name)
    if len(positions) != len(most):
        raise InvalidRequest(f"{name}: {len(positions)} numbers for {len(most)} choices", param=name)
    for position, limit in zip(positions, most, strict=True):
        if position > limit:
            raise InvalidRequest(f"{name}: {position} is beyond the {limit} tokens of the answer", param=name)
    return positions


def _first(asked: float | None, checkpoint: float | None, default: float) -> float:
    if asked is not None:
        return asked
    return default if checkpoint is None else checkpoint
