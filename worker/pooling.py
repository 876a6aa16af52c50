"""Embeddings: one vector for a whole sequence, from its hidden states behind the final norm.

`last` takes the state of the last token, which alone has seen all of them; `mean` the average over all
tokens, which is summed up chunk by chunk. Vectors have length 1, in float32. Which of the two a model was
trained for stands in the files that sentence-transformers writes; without them it is the last token's.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch.nn.functional as F
from msgspec import Struct, structs
from torch import Tensor

from protocol import columns
from protocol.errors import NumericalError, StartupError
from protocol.messages import NO_TOKEN
from protocol.steps import StepResult

from .batch import Ints, Rows

Kind = Literal["last", "mean"]
States = Callable[[Tensor], Tensor]
"""A model's final norm: [n, hidden] → the same"""

_KINDS: dict[str, Kind] = {"lasttoken": "last", "mean": "mean"}
_MODULES = ("Transformer", "Pooling", "Normalize")
"""Of sentence-transformers: what may stand between a text and its vector."""


class _Module(Struct, frozen=True):
    """An entry of modules.json."""

    type: str
    path: str = ""


class Pooling:
    """Which resident sequences are to become vectors, and what is known of them so far."""

    def __init__(self, max_num_seqs: int, kind: Kind) -> None:
        self.kind = kind
        self._wanted = np.zeros(max_num_seqs, dtype=np.bool_)
        self._sums: dict[int, Tensor] = {}
        """By slot, float32[hidden]; of `mean` only"""

    def start(self, slot: int, embed: bool) -> None:
        """A sequence enters."""
        self._wanted[slot] = embed
        self._sums.pop(slot, None)

    def wants(self, slots: Ints) -> bool:
        """Whether any of these is to become a vector."""
        return bool(self._wanted[slots].any())

    def pool(self, x: Tensor, rows: Rows, states: States) -> dict[int, Tensor]:
        """Hidden states [tokens, hidden] of a step → float32[hidden] of each sequence that is complete with
        it, by row of its plan."""
        wanted = np.flatnonzero(self._wanted[rows.slots])
        if not len(wanted):
            return {}
        complete = set(rows.sampling.tolist())
        found: dict[int, Tensor] = {}
        for row in wanted.tolist():
            begin, end = int(rows.query_start[row]), int(rows.query_start[row + 1])
            if self.kind == "mean":
                slot = int(rows.slots[row])
                total = states(x[begin:end]).float().sum(0)
                self._sums[slot] = total + self._sums[slot] if slot in self._sums else total
                vector = self._sums[slot]
            else:
                vector = states(x[end - 1 : end])[0].float()
            if row in complete:
                found[int(rows.plan_rows[row])] = F.normalize(vector, dim=0)
        return found


def instead_of_tokens(result: StepResult, vectors: Mapping[int, Tensor]) -> StepResult:
    """A step's result, with the vectors of these rows in the place of what they sampled."""
    token_ids = columns.unpack_ids(result.token_ids)
    failed = dict(result.failed_rows)
    for row, vector in vectors.items():
        token_ids[row] = NO_TOKEN
        if not bool(vector.isfinite().all()):
            failed[row] = NumericalError.code
    return structs.replace(
        result,
        token_ids=token_ids.tobytes(),
        failed_rows=tuple(failed.items()),
        embeddings=tuple((row, v.numpy().tobytes()) for row, v in vectors.items() if row not in failed),
    )


def kind_of(folder: Path) -> Kind:
    """How the checkpoint's own files say that its states are pooled. Raises StartupError."""
    modules = _read(folder / "modules.json", list[_Module]) or []
    for module in modules:
        name = module.type.rpartition(".")[2]
        if name not in _MODULES:
            raise StartupError(
                f"modules.json has a {name!r} between hidden states and embeddings, which is not supported; "
                f"only {', '.join(_MODULES)} are",
                hint="without modules.json the model can be served, and embeds by its last token",
            )
    place = next((module.path for module in modules if module.type.endswith("Pooling")), "1_Pooling")
    config: dict[str, Any] = _read(folder / place / "config.json", dict[str, Any]) or {}
    modes = [name.removeprefix("pooling_mode_") for name, on in config.items() if _is_mode(name) and on]
    modes = [name.removesuffix("_tokens") for name in modes]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if not modes:
        return "last"
    if len(modes) > 1 or modes[0] not in _KINDS:
        raise StartupError(
            f"{place}/config.json pools by {' and '.join(modes)}, which is not supported; "
            "only the last token or the mean are"
        )
    return _KINDS[modes[0]]


def _is_mode(name: str) -> bool:
    return name.startswith("pooling_mode_")


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise StartupError(f"{path.parent.name}/{path.name} cannot be read: {error}") from None
