"""The text part of a checkpoint of a model that can also see, where a declared family computes it: which
family that is, its settings, and its tensors under a text model's names. What is of pictures is left out.

Knows three layouts, by how old the file is:

    language_model.model.layers.0…  │ model.language_model.layers.0…  │ model.layers.0…  →  model.layers.0…
    language_model.lm_head.weight   │ lm_head.weight                  │ lm_head.weight   →  lm_head.weight
    vision_tower.… multi_modal_projector.… visual.…  (with or without "model." before them)  →  nothing
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import Checkpoint, StoredTensor, TensorPart
from ..weights import Source

Config = TypeVar("Config")


class Wrapper(NamedTuple):
    """One of `architectures` with a text part."""

    model_type: str
    """Of its text_config; with another, it is another model."""
    family: str
    """That computes the same, of texts: rotations by height and width (mrope) are then by position."""


WRAPPERS = {
    "Gemma3ForConditionalGeneration": Wrapper("gemma3_text", "Gemma3ForCausalLM"),
    "Mistral3ForConditionalGeneration": Wrapper("mistral", "MistralForCausalLM"),
    "Qwen2VLForConditionalGeneration": Wrapper("qwen2_vl_text", "Qwen2ForCausalLM"),
    "Qwen2_5_VLForConditionalGeneration": Wrapper("qwen2_5_vl_text", "Qwen2ForCausalLM"),
    "Qwen3VLForConditionalGeneration": Wrapper("qwen3_vl_text", "Qwen3ForCausalLM"),
}

_PREFIXES = (
    ("language_model.", ""),
    ("model.language_model.", "model."),
    ("model.", "model."),
    ("lm_head.", "lm_head."),
)
_PARTS = ("vision_tower.", "multi_modal_projector.", "visual.")
_PICTURES = tuple(prefix + part for prefix in ("", "model.") for part in _PARTS)


def text_config(checkpoint: Checkpoint, kind: type[Config]) -> Config:
    """Settings of the text part; the first Qwen-VLs have them at the top. Raises StartupError."""
    whole = checkpoint.config(dict[str, Any])
    text = whole.get("text_config") or whole
    if whole.get("tie_word_embeddings") is True:
        text = {"tie_word_embeddings": True, **text}
    try:
        return msgspec.convert(text, type=kind)
    except msgspec.ValidationError as error:
        raise StartupError(f"text_config in config.json is malformed: {error}") from None


class TextPart:
    """A weights.Source."""

    def __init__(self, source: Source) -> None:
        """Raises StartupError for a tensor of neither part."""
        self._source = source
        self._names = dict(_names(source.tensors))
        self.tensors: Mapping[str, StoredTensor] = {
            name: source.tensors[own] for name, own in self._names.items()
        }

    def read(self, part: TensorPart) -> Tensor:
        """As Checkpoint.read."""
        return self._source.read(part._replace(name=self._names[part.name]))


def _names(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """(name in the text model, name in the checkpoint)"""
    for own in stored:
        if own.startswith(_PICTURES):
            continue
        found = next((new + own.removeprefix(old) for old, new in _PREFIXES if own.startswith(old)), None)
        if found is None:
            raise StartupError(
                f"the checkpoint has {own!r}, which is neither of its text part nor of pictures"
            )
        yield found, own
