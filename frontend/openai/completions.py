"""POST /v1/completions: prompts in (texts or ids, one or many). What comes out is in completion_events.py.

`max_tokens: 0` scores the prompt only (`echo` with `logprobs`, or `prompt_logprobs`): one token is sampled,
because a step samples, and thrown away.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts

from ..service import Service
from ..streams import Generation, Prompt, Wish
from .completion_events import CompletionEvents
from .endpoint import GeneratingEndpoint
from .extras import Extras
from .fields import MAX_N, GenerationFields, NumLogprobs, make_wish
from .headers import Terms
from .prompting import check_not_empty, encode_texts, texts_or_ids, truncated
from .refused import COMPLETIONS

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 1024
"""Prompts times n."""


class CompletionRequest(GenerationFields, frozen=True, kw_only=True):
    prompt: str | list[str | int | Annotated[list[int], Meta(min_length=1)]] | None = None
    """A text, several, the ids of one, or the ids of several."""
    best_of: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    """So many answers are made, and the n with the highest log-probability per token given, best first."""
    echo: bool | None = None
    """The answer begins with the prompt."""
    logprobs: NumLogprobs | None = None
    """So many likeliest tokens beside each; with echo the prompt's, too."""
    add_special_tokens: bool | None = None
    """false: none are put around a prompt that is a text."""


class Completions(GeneratingEndpoint[CompletionRequest]):
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, CompletionRequest, COMPLETIONS)

    async def plan(
        self, request: CompletionRequest, facts: EngineFacts, terms: Terms
    ) -> tuple[Sequence[Prompt], Wish]:
        prompts = await self._prompts(request, facts)
        return prompts, self._wish(request, prompts, facts, terms)

    def respond(
        self, request: CompletionRequest, generation: Generation, model: str, response_id: str
    ) -> CompletionEvents:
        extras = Extras.of(request, self.service.tokenizer)
        return CompletionEvents(
            self.service,
            generation,
            model,
            response_id,
            width=extras.width(request.logprobs),
            echo=bool(request.echo),
            skip_special=request.skip_special_tokens is not False,
            extras=extras,
            num_kept=request.n or 1,
            num_made=_num_made(request),
        )

    async def _prompts(self, request: CompletionRequest, facts: EngineFacts) -> Sequence[Prompt]:
        special = request.add_special_tokens is not False
        service, given = self.service, request.prompt
        if given is None or given == []:
            raise InvalidRequest("prompt: required, but empty or missing", param="prompt")
        if isinstance(given, str):
            given = [given]
        texts, id_lists = texts_or_ids(given, "prompt")
        count = (len(texts) or len(id_lists)) * _num_made(request)
        if count > MAX_CHOICES:
            raise InvalidRequest(
                f"prompt: {count} answers (prompts times n or best_of) are over {MAX_CHOICES}", param="prompt"
            )
        if texts:
            prompts = await encode_texts(service, texts, facts, add_special_tokens=special)
        else:
            prompts = [Prompt(one) for one in id_lists]
        check_not_empty(prompts, "prompt")
        return truncated(prompts, request, facts, request.max_tokens)

    def _wish(
        self, request: CompletionRequest, prompts: Sequence[Prompt], facts: EngineFacts, terms: Terms
    ) -> Wish:
        n, num_made, silent = request.n or 1, _num_made(request), request.max_tokens == 0
        if num_made < n:
            raise InvalidRequest(f"best_of: {num_made} is less than n, which is {n}", param="best_of")
        if num_made > n and request.stream:
            rule = "which answers are the best is known at their end, so not together with stream: true"
            raise InvalidRequest(f"best_of: {rule}", param="best_of")
        logprobs = request.logprobs
        if num_made > n and logprobs is None:
            logprobs = 0  # to compare them
        return make_wish(
            request,
            prompts,
            facts,
            self.service,
            prompt_field="prompt",
            terms=terms,
            max_tokens=1 if silent else request.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=logprobs,
            echo_logprobs=request.logprobs if request.echo else None,
            num_choices=num_made,
            silent=silent,
        )


def _num_made(request: CompletionRequest) -> int:
    """Answers to each prompt."""
    return request.best_of or request.n or 1
