"""The `usage` object of responses and last events."""

from msgspec import Struct

from ..streams import Usage


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int
    """Found in the prefix cache."""


class UsageBody(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_answer_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_answer_tokens,
        prompt_tokens_details=PromptTokensDetails(usage.num_cached_tokens),
    )
