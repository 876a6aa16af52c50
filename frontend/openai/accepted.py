"""Fields that clients send and that change no answer here: accepted without effect, each with the reason.

What is in no type, not in refused.py and not here is unknown, and accepted too: clients of tomorrow send what
nobody knows today. A field that would change an answer belongs to a type, or to refused.py.
"""

_LABEL = "a label of the caller's; keys are the tenants here"
_ONE_PROCESS = "a setting of llama.cpp's slots; there are none"

GENERATION: dict[str, str] = {
    "user": _LABEL,
    "safety_identifier": _LABEL,
    "metadata": "labels for what OpenAI stores",
    "store": "answers of this endpoint are not stored",
    "service_tier": "there is one",
    "prompt_cache_key": "prefixes are found by what they hold; see `cache_salt`",
    "prompt_cache_retention": "blocks stay cached until they are needed",
    "prediction": "would only make it faster",
    "moderation": "nothing is moderated here",
    "request_id": "send `X-Request-Id`, which is echoed and logged",
    "rid": "send `X-Request-Id`, which is echoed and logged",
    "session_id": _LABEL,
    "client_metadata": _LABEL,
    "guided_decoding_backend": "there is one",
    "response_format.json_schema.name": "the schema alone says what the answer is",
    "response_format.json_schema.description": "the schema alone says what the answer is",
    "response_format.json_schema.strict": "it is always strict",
    "structured_outputs.disable_fallback": "there is none",
    "spaces_between_special_tokens": "concerns tokenizers without a tokenizer.json only",
    "cache_prompt": "prefixes are cached anyway",
    "id_slot": _ONE_PROCESS,
    "timings_per_token": "see /metrics",
    "kv_transfer_params": "prefill and decode are not apart here",
}
"""Of every endpoint that generates."""

MESSAGES: dict[str, str] = {"messages[].tool_calls[].type": "all calls are of functions"}
"""Wherever there are messages."""

CHAT: dict[str, str] = (
    GENERATION
    | MESSAGES
    | {
        "verbosity": "a hint to OpenAI's own models; no template reads it",
    }
)

COMPLETIONS: dict[str, str] = GENERATION

TOKENIZE: dict[str, str] = MESSAGES | {"tools[].function.strict": "it concerns the answer, not the prompt"}

EMBEDDINGS: dict[str, str] = {
    "user": _LABEL,
}
