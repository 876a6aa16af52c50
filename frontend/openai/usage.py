"""The `usage` object of responses and last events."""

from msgspec import UNSET, Struct, UnsetType

from ..streams import Usage


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int
    """Found in the prefix cache."""


class CompletionTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class UsageBody(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    """Where reasoning is told apart."""


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_answer_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_answer_tokens,
        prompt_tokens_details=PromptTokensDetails(usage.num_cached_tokens),
        completion_tokens_details=(
            CompletionTokensDetails(usage.num_reasoning_tokens) if usage.num_reasoning_tokens else UNSET
        ),
    )
