"""The text part of a checkpoint of a model that can also see: its tensors under the names of a text model.

Knows two layouts, by how old the file is, and leaves out whatever belongs to pictures:

    language_model.model.layers.0…  │ model.language_model.layers.0…  →  model.layers.0…
    language_model.lm_head.weight   │ lm_head.weight                  →  lm_head.weight
    vision_tower.… multi_modal_projector.…  (with or without "model." before them)  →  nothing
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import StoredTensor, TensorPart
from ..weights import Source

_PREFIXES = (("language_model.", ""), ("model.language_model.", "model."), ("lm_head.", "lm_head."))
_PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


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
