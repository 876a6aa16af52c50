"""A checkpoint under the names and shapes of a transformers model. Knows no layer and computes nothing.

transformers renames some checkpoints' tensors, and merges or splits others (experts one by one → one tensor
of all), by rules that it keeps as data. They are applied twice: to tensors without data, so that every
name and shape is known and checked before anything is read, and to the data of one target at a time.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from protocol.errors import StartupError

from ..checkpoint import StoredTensor, TensorPart
from ..weights import Source

_CONVERTED_OFFSET = -1
"""Of a tensor that lies nowhere as it is."""


_OF_QUANTIZED_EXPERT = re.compile(r"\.experts\..*(\.qweight|\.weight_packed|_scale(_inv)?)$")
"""Of one, or of all of a layer in one tensor."""


class _Slice(NamedTuple):
    """A part of a stack."""

    stack: str
    number: int
    of: int
    """So many."""


class Conversion:
    """What becomes of some tensors of the checkpoint: one or more of the model's."""

    def __init__(self, rule: WeightConverter, target: str) -> None:
        self.target = target
        self.sources: dict[str, list[str]] = defaultdict(list)
        """By the rule's pattern: names in the checkpoint"""
        self._rule = rule

    def apply(self, read: Callable[[str], Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """The model's tensors by name."""
        rule: Any = deepcopy(self._rule)
        for pattern, names in self.sources.items():
            for name in names:
                rule.add_tensor(self.target, name, pattern, lambda name=name: read(name))
        found = rule.convert(self.target, model=model, config=model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in found.items()}


class ConvertedCheckpoint:
    """A weights.Source."""

    def __init__(self, model: PreTrainedModel, stacks: Mapping[str, str], source: Source) -> None:
        """`stacks`: tensors whose first dimension is taken apart → the names of what they consist of, with a
        place for the number. Raises StartupError for a conversion that cannot be done."""
        self.tensors: dict[str, StoredTensor] = {}
        self._source = source
        self._model = model
        self._names: dict[str, str] = {}
        self._conversions: dict[str, Conversion] = {}
        self._ready: dict[str, Tensor] = {}
        """Results of a conversion that gave several, until they are read."""
        self._slices: dict[str, _Slice] = {}
        ours: dict[str, Tensor] = model.state_dict()
        rules: list[Any] = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        unused = _unused(model)
        conversions: dict[str, Conversion] = {}
        for name in sorted(source.tensors, key=dot_natural_key):
            prefix = model.base_model_prefix
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, ours)
            if renamed not in ours and name in ours:
                renamed, pattern = rename_source_key(name, [], [], prefix, ours)
            if renamed not in ours and unused.search(renamed):
                continue
            if stacks and _OF_QUANTIZED_EXPERT.search(renamed):
                raise StartupError(
                    f"{name!r}: quantized experts are not supported in transformers' own code",
                    hint="use an unquantized checkpoint with --quantization",
                )
            if pattern is None:
                self._names[renamed] = name
                self.tensors[renamed] = source.tensors[name]
            else:
                rule = by_pattern[pattern]
                conversions.setdefault(renamed, Conversion(rule, renamed)).sources[pattern].append(name)
        for conversion in conversions.values():
            self._add(conversion)
        for stack in stacks.keys() & self.tensors.keys():
            self._take_apart(stack, stacks[stack])

    def read(self, part: TensorPart) -> Tensor:
        """As Checkpoint.read."""
        name = part.name
        if name in self._slices:
            return self._read_slice(part)
        if name in self._names:
            return self._source.read(part._replace(name=self._names[name]))
        found = self._converted(name)
        del self._ready[name]
        return part.cut(found)

    def _take_apart(self, stack: str, names: str) -> None:
        stored = self.tensors.pop(stack)
        count, *shape = stored.shape
        for i in range(count):
            self.tensors[names.format(i)] = stored._replace(shape=tuple(shape))
            self._slices[names.format(i)] = _Slice(stack, i, count)

    def _read_slice(self, part: TensorPart) -> Tensor:
        """Slices are read in order, so a converted stack is there until its last one is."""
        stack, i, count = self._slices[part.name]
        if stack in self._names:
            shape, starts, sizes = (count, *part.shape), (i, *part.starts), (1, *part.sizes)
            of_stack = TensorPart(self._names[stack], shape, starts, sizes, part.dtypes, part.kept)
            return self._source.read(of_stack)[0]
        found = self._converted(stack)
        if i == count - 1:
            del self._ready[stack]
        return part.cut(found[i])

    def _converted(self, name: str) -> Tensor:
        if name not in self._ready:
            self._ready.update(self._conversions[name].apply(self._read_whole, self._model))
        return self._ready[name]

    def _add(self, conversion: Conversion) -> None:
        """Convert without data, to learn what comes of it."""
        stored = self._source.tensors
        any_source = stored[next(iter(conversion.sources.values()))[0]]
        try:
            parts = conversion.apply(
                lambda name: torch.empty(stored[name].shape, dtype=stored[name].dtype, device="meta"),
                self._model,
            )
        except Exception as error:
            raise StartupError(
                f"the checkpoint's tensors for {conversion.target!r} cannot be converted: {error}",
                hint="check that the download is complete",
            ) from error
        for name, part in parts.items():
            self._conversions[name] = conversion
            self.tensors[name] = StoredTensor(
                any_source.path, part.dtype, tuple(part.shape), _CONVERTED_OFFSET
            )

    def _read_whole(self, name: str) -> Tensor:
        shape = self._source.tensors[name].shape
        return self._source.read(TensorPart(name, shape, (0,) * len(shape), shape))


def _unused(model: PreTrainedModel) -> re.Pattern[str]:
    """Tensors that transformers leaves out, too: what the model declares, and frequencies in old files."""
    declared: set[str] = set(model._keys_to_ignore_on_load_unexpected or ())
    return re.compile("|".join([*sorted(declared), r"rotary_emb\.inv_freq$"]))
