"""Our attention under a name that transformers' modelling code can be told to use.

transformers calls an attention function for every layer with queries, keys and values. Ours hands them to
whatever attends at the time: in a step, to the layers' caches; before there are weights, to a Trace, which
writes down what each layer asks for, and refuses what our attention would not honour.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from protocol.errors import StartupError

from ..kernels.attention import StepMetadata, paged_attention, write_kv
from ..kernels.bent_attention import bent_attention
from ..kernels.paged_kv import PagedKV
from ..kv_layout import Window

ATTENTION = "tern"
"""It has no mask function, so transformers makes no mask."""
_ANY_LENGTH = 4096
"""Of a model that names none, which is refused later, for that or for a better reason."""
TRACE = "tern-trace"
"""The same, with a mask function that tells what the mask would have been."""
HARMLESS = frozenset(
    {
        "dropout",
        "s_aux",
        "scaling",
        "softcap",
        "sliding_window",
        "is_causal",
        "logits_to_keep",
        "position_ids",
        "position_embeddings",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
    }
)
"""Arguments of attention functions that are honoured, or change nothing: windows are taken from masks."""
Options = Mapping[str, Any]


class LayerSpec(NamedTuple):
    """What one layer's attention asks for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys, and at least that of values."""
    window: Window
    scale: float
    soft_cap: float | None


class Attends(Protocol):
    """What stands behind the attention of a call of the model."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
    ) -> Tensor:
        """The next layer's [1, heads, tokens, head_dim] → [1, tokens, heads, head_dim]"""


class Trace:
    """A run on shapes alone."""

    def __init__(self) -> None:
        self.layers: list[LayerSpec] = []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
    ) -> Tensor:
        """Raises StartupError for what is not supported."""
        unknown = sorted(
            name for name, given in options.items() if name not in HARMLESS and given is not None
        )
        if unknown:
            raise StartupError(f"its attention uses {unknown[0]!r}, which is not supported")
        if not hasattr(mask, "tern_window"):
            raise StartupError("it makes its attention mask by itself, which is not supported")
        if key.shape[2] != query.shape[2]:
            raise StartupError("it attends to other tokens than its own (cross attention)")
        if value.shape[3] > key.shape[3]:
            raise StartupError(
                f"its values have {value.shape[3]} dimensions, more than its keys ({key.shape[3]})"
            )
        if options.get("is_causal") is False:
            raise StartupError("its attention looks in both directions")
        scale = options.get("scaling")
        spec = LayerSpec(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            head_dim=key.shape[3],
            window=mask.tern_window,  # type: ignore[union-attr]
            scale=query.shape[3] ** -0.5 if scale is None else float(scale),
            soft_cap=options.get("softcap"),
        )
        self.layers.append(spec)
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


class Step:
    """One step: all layers, which come in order."""

    def __init__(self, layers: Sequence[LayerSpec], caches: list[PagedKV], metadata: StepMetadata) -> None:
        self._layers = zip(layers, caches, metadata, strict=True)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
    ) -> Tensor:
        layer, cache, metadata = next(self._layers)
        _, _, heads, _, dim = cache.cache.shape
        both = torch.cat([_filled(x[0], heads, dim) for x in (key, value)])
        write_kv(both.transpose(0, 1), cache, metadata)
        queries = _filled(query[0], layer.num_heads, dim).transpose(0, 1)
        sinks: Tensor | None = options.get("s_aux")
        if layer.soft_cap is None and sinks is None:
            mixed = paged_attention(queries, cache, metadata, layer.scale)
        else:
            sinks = None if sinks is None else sinks.float().contiguous()
            mixed = bent_attention(queries, cache, metadata, layer.scale, layer.soft_cap, sinks)
        return mixed.view(1, *queries.shape)[..., : value.shape[3]]


def _filled(x: Tensor, heads: int, dim: int) -> Tensor:
    """[heads, tokens, dim] as layers' caches of one shape hold it: each head several times over, and zeros
    in further dimensions, which add nothing to a score."""
    if x.shape[0] < heads:
        x = x.repeat_interleave(heads // x.shape[0], dim=0)
    return x if x.shape[2] == dim else F.pad(x, (0, dim - x.shape[2]))


_attending: ContextVar[Attends] = ContextVar("attending")


@contextmanager
def attending(target: Attends) -> Iterator[None]:
    """Within, a model's layers attend there."""
    token = _attending.set(target)
    try:
        yield
    finally:
        _attending.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it."""
    return _attending.get().attend(query, key, value, attention_mask, options), None


def _window_of_mask(*, mask_function: Callable[..., Tensor], config: Any, **_: Any) -> Tensor:
    """A mask function as transformers calls it: the rule is asked about the last two positions."""
    last: int = (getattr(config, "max_position_embeddings", None) or _ANY_LENGTH) - 1
    keys = torch.arange(last + 2)
    counts = []
    for query in (last - 1, last):
        try:
            seen = mask_function(torch.tensor(0), torch.tensor(0), torch.tensor(query), keys).expand(last + 2)
        except (IndexError, RuntimeError) as error:
            why = "its attention mask follows more than positions (chunks, or blocks of a picture)"
            raise StartupError(f"{why}, which is not supported") from error
        counts.append(int(seen[: query + 1].sum()))
        if seen[query + 1 :].any():
            raise StartupError("its attention looks in both directions")
        if not seen[query + 1 - counts[-1] : query + 1].all():
            raise StartupError("its attention mask is neither causal nor a sliding window")
    if counts[1] < last + 1 and counts[0] != counts[1]:
        raise StartupError("its attention is in chunks, which is not supported")
    mask = torch.empty(0, device="meta")
    mask.tern_window = None if counts[1] == last + 1 else counts[1]  # type: ignore[attr-defined]
    return mask


AttentionInterface.register(ATTENTION, _attend)
AttentionInterface.register(TRACE, _attend)
AttentionMaskInterface.register(TRACE, _window_of_mask)
