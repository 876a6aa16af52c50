"""Fields that would change the answer and are not honoured: refused by name, never silently ignored.

The names are those that clients of OpenAI, vLLM, SGLang and llama.cpp send. A value listed as harmless
asks for nothing and is accepted, and so is null. `Refusals.check` reads only these fields of a body.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from protocol.errors import Unsupported

from .parse import parse


class Refusal(NamedTuple):
    """`harmless` values change nothing. `remedy` ends the sentence "… is not supported: "."""

    remedy: str
    harmless: tuple[Any, ...] = ()


_GRAMMAR = "use `structured_outputs`, or `response_format` for JSON"
_SAMPLER = "no such sampling step; use temperature, top_p, top_k, min_p or the penalties"
_INPUT = "this server reads text only; remove it"

GENERATION: dict[str, Refusal] = {
    "json_schema": Refusal(_GRAMMAR),
    "regex": Refusal(_GRAMMAR),
    "grammar": Refusal(_GRAMMAR, ("",)),
    "ebnf": Refusal(_GRAMMAR),
    "stop_regex": Refusal("use `stop` with plain strings"),
    "no_stop_trim": Refusal("use `include_stop_str_in_output`", (False,)),
    "n_predict": Refusal("use `max_tokens`"),
    "max_new_tokens": Refusal("use `max_tokens`"),
    "min_new_tokens": Refusal("use `min_tokens`"),
    "input_ids": Refusal("send ids as `prompt` to /v1/completions"),
    "prompt_embeds": Refusal(_INPUT),
    "logits_processors": Refusal("no code from requests runs here", ([],)),
    "use_beam_search": Refusal("sample with `n` instead", (False,)),
    "length_penalty": Refusal("there is no beam search", (1, 1.0)),
    "typical_p": Refusal(_SAMPLER, (1, 1.0)),
    "top_a": Refusal(_SAMPLER, (0, 0.0)),
    "tfs_z": Refusal(_SAMPLER, (1, 1.0)),
    "mirostat": Refusal(_SAMPLER, (0,)),
    "dry_multiplier": Refusal(_SAMPLER, (0, 0.0)),
    "xtc_probability": Refusal(_SAMPLER, (0, 0.0)),
    "lora_path": Refusal("name the adapter as `model`"),
    "repeat_penalty": Refusal("use `repetition_penalty`", (1, 1.0)),
    "do_sample": Refusal("use `temperature`", (True,)),
    "num_beams": Refusal("sample with `n` instead", (1,)),
    "vllm_xargs": Refusal("no code from requests runs here", ({},)),
    "return_hidden_states": Refusal("use /v1/embeddings", (False,)),
}
"""Of every endpoint that generates."""

CHAT: dict[str, Refusal] = GENERATION | {
    "functions": Refusal("use `tools`", ([],)),
    "function_call": Refusal("use `tool_choice`", ("none", "auto")),
    "documents": Refusal("put them into a message", ([],)),
    "chat_template": Refusal("the operator chooses it, with --chat-template"),
    "modalities": Refusal("this server answers in text only", (["text"], [])),
    "audio": Refusal("this server answers in text only"),
    "web_search_options": Refusal("this server does not search; put what it should know into a message"),
    "echo": Refusal("use /v1/completions", (False,)),
    "best_of": Refusal("use `n`, or /v1/completions", (1,)),
    "mm_processor_kwargs": Refusal(_INPUT, ({},)),
}

COMPLETIONS: dict[str, Refusal] = GENERATION | {
    "suffix": Refusal("this server does not fill in the middle", ("",)),
    "max_completion_tokens": Refusal("use `max_tokens`"),
    "top_logprobs": Refusal("use `logprobs`", (0,)),
    "tools": Refusal("use /v1/chat/completions", ([],)),
    "thinking_token_budget": Refusal("use /v1/chat/completions"),
}

EMBEDDINGS: dict[str, Refusal] = {
    "messages": Refusal("send texts or ids as `input`", ([],)),
    "prompt": Refusal("send texts or ids as `input`", ("", [])),
    "stream": Refusal("a vector comes whole", (False,)),
    "normalize": Refusal("vectors have length 1 here", (True,)),
    "embed_dtype": Refusal("vectors are float32 here", ("float32",)),
    "task": Refusal("write its instruction into the text, as the model's card says"),
    "instruction": Refusal("write it into the text, as the model's card says", ("",)),
    "input_type": Refusal("write its instruction into the text, as the model's card says"),
}

_LONGEST_HARMLESS_BYTES = 256


_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class Refusals:
    """One endpoint's table, ready to be looked for."""

    def __init__(self, table: Mapping[str, Refusal]) -> None:
        self._table = table
        present = msgspec.defstruct("Present", [(name, Raw, Raw(b"null")) for name in table])
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(present)

    def check(self, body: bytes) -> None:
        """Raises Unsupported for the first field that asks for something."""
        present = parse(self._decoder, body)
        for name, refusal in self._table.items():
            raw = bytes(getattr(present, name)).strip()
            if raw == b"null":
                continue
            small = len(raw) <= _LONGEST_HARMLESS_BYTES
            if small and parse(_ANY, raw) in refusal.harmless:
                continue
            raise Unsupported(f"{name} is not supported: {refusal.remedy}", param=name)
