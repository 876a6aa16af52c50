"""What a request wants beside OpenAI's answer, as vLLM gives it: ids, log-probabilities of the prompt."""

from msgspec import UNSET, Struct, UnsetType

from ..streams import Choice
from ..tokenizer import Tokenizer
from .fields import GenerationFields
from .logprobs import PromptLogprobsBody, TokenIdNames, Vocabulary, prompt_logprobs


class Extras(Struct, frozen=True):
    """Of one request. Everything is UNSET, or None, unless it was asked for."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    """That names tokens in log-probabilities of the answer."""
    token_ids: bool
    prompt_logprobs_width: int | None
    num_logprob_token_ids: int

    @classmethod
    def of(cls, request: GenerationFields, tokenizer: Tokenizer) -> "Extras":
        names: Vocabulary = TokenIdNames() if request.return_tokens_as_token_ids else tokenizer
        return cls(
            tokenizer,
            names,
            bool(request.return_token_ids),
            request.prompt_logprobs,
            len(request.logprob_token_ids or ()),
        )

    def width(self, asked: int | None) -> int | None:
        """How many tokens log-probabilities show beside each; `asked`: so many of the likeliest."""
        return asked if asked is None else self.num_logprob_token_ids or asked

    def prompt_token_ids(self, choice: Choice) -> list[int] | None:
        return choice.prompt.token_ids if self.token_ids else None

    def new_token_ids(self, choice: Choice) -> list[int] | None:
        """Since the last call."""
        return choice.new_token_ids() if self.token_ids else None

    def prompt_logprobs(self, choice: Choice) -> PromptLogprobsBody | UnsetType:
        """Once the choice has begun."""
        if self.prompt_logprobs_width is None:
            return UNSET
        found = choice.stream.prompt_logprobs
        return prompt_logprobs(choice.prompt.token_ids, found, self.prompt_logprobs_width, self.tokenizer)


def or_unset(token_ids: list[int] | None) -> list[int] | UnsetType:
    return UNSET if token_ids is None else token_ids
