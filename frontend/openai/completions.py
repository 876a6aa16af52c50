"""POST /v1/completions: prompts in (texts or ids, one or many). What comes out is in completion_events.py.

`max_tokens: 0` with `echo` scores the prompt only: one token is sampled, because a step samples, and
thrown away.
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
from .fields import GenerationFields, NumLogprobs, make_wish
from .headers import Terms
from .prompting import check_not_empty, encode_texts
from .refused import COMPLETIONS

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 1024
"""Prompts times n."""


class CompletionRequest(GenerationFields, frozen=True, kw_only=True):
    prompt: str | list[str | int | Annotated[list[int], Meta(min_length=1)]] | None = None
    """A text, several, the ids of one, or the ids of several."""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    add_special_tokens: bool | None = None


class Completions(GeneratingEndpoint[CompletionRequest]):
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, CompletionRequest, COMPLETIONS)

    async def plan(
        self, request: CompletionRequest, facts: EngineFacts, terms: Terms
    ) -> tuple[list[Prompt], Wish]:
        prompts = await self._prompts(request, facts)
        return prompts, self._wish(request, prompts, facts, terms)

    def respond(
        self, request: CompletionRequest, generation: Generation, model: str, response_id: str
    ) -> CompletionEvents:
        return CompletionEvents(
            self.service,
            generation,
            model,
            response_id,
            width=request.logprobs,
            echo=bool(request.echo),
            skip_special=request.skip_special_tokens is not False,
        )

    async def _prompts(self, request: CompletionRequest, facts: EngineFacts) -> list[Prompt]:
        special = request.add_special_tokens is not False
        service, given = self.service, request.prompt
        if given is None or given == []:
            raise InvalidRequest("prompt: required, but empty or missing", param="prompt")
        if isinstance(given, str):
            given = [given]
        texts = [one for one in given if isinstance(one, str)]
        id_lists = [one for one in given if isinstance(one, list)]
        ids = [one for one in given if isinstance(one, int)]
        if len(given) not in (len(texts), len(id_lists), len(ids)):
            raise InvalidRequest("prompt: texts, ids and lists of ids cannot be mixed", param="prompt")
        count = (1 if ids else len(given)) * (request.n or 1)
        if count > MAX_CHOICES:
            raise InvalidRequest(
                f"prompt: {count} answers (prompts times n) are over {MAX_CHOICES}", param="prompt"
            )
        if texts:
            prompts = await encode_texts(service, texts, facts, add_special_tokens=special)
        else:
            prompts = [Prompt(one) for one in id_lists or [ids]]
        check_not_empty(prompts, "prompt")
        return prompts

    def _wish(
        self, request: CompletionRequest, prompts: Sequence[Prompt], facts: EngineFacts, terms: Terms
    ) -> Wish:
        n, best_of = request.n or 1, request.best_of
        if best_of is not None and best_of != n:
            raise InvalidRequest(f"best_of: {best_of} is not n ({n}); ask for n answers", param="best_of")
        silent = request.max_tokens == 0
        if silent and not request.echo:
            raise InvalidRequest("max_tokens: 0 is only allowed together with echo", param="max_tokens")
        return make_wish(
            request,
            prompts,
            facts,
            self.service,
            prompt_field="prompt",
            terms=terms,
            max_tokens=1 if silent else request.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
            silent=silent,
        )
