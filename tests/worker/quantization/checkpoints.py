"""Tiny checkpoints with some matrices quantized, beside the same with those matrices dequantized."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.sampling import SamplingParams
from tests.parity.reference import VOCAB_SIZE, tokens, write_checkpoint
from tests.worker.driver import Driver, quiet, worker_config
from worker.kernels.matmul import dequantize_int4
from worker.quantization.cache import Cache
from worker.quantization.format import Cut
from worker.quantization.grouped import Grouped, GroupedPart, Storage
from worker.runner import TorchRunner

Quantize = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor] | None]
"""(module, its weight) → (tensors that are stored instead of it, by their last name; the weight that they
mean), or None to leave the module as it is"""


class Twins(NamedTuple):
    quantized: Path
    dequantized: Path


def write_twins(
    folder: Path, quantize: Quantize, config: dict[str, Any], model_type: str = "llama", **changes: Any
) -> Twins:
    """`config` becomes the quantization_config."""
    twins = Twins(folder / "quantized", folder / "dequantized")
    write_checkpoint(twins.dequantized, model_type, **changes)
    twins.quantized.mkdir()
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(twins.dequantized / "model.safetensors").items():
        module, _, kind = name.rpartition(".")
        leave = tensor.dim() != 2 or kind != "weight" or "embed" in name or "lm_head" in name
        found = None if leave else quantize(module, tensor)
        if found is None:
            stored[name] = meant[name] = tensor
            continue
        stored |= {f"{module}.{last}": part.contiguous() for last, part in found[0].items()}
        meant[name] = found[1].float().contiguous()
    save_file(stored, twins.quantized / "model.safetensors")
    save_file(meant, twins.dequantized / "model.safetensors")
    plain = msgspec.json.decode((twins.dequantized / "config.json").read_bytes())
    plain["quantization_config"] = config
    (twins.quantized / "config.json").write_bytes(msgspec.json.encode(plain))
    return twins


def logprobs(folder: Path, group_dir: Path, **options: Any) -> Tensor:
    """float32[tokens, vocabulary] of a fixed text, by our runner."""
    driver = Driver(TorchRunner(worker_config(folder, group_dir, **options), quiet))
    text = tokens(40)
    seq = driver.add(text, SamplingParams(temperature=0, prompt_logprobs=VOCAB_SIZE))
    driver.run([seq], 1, chunk=30)
    rows = [seq.prompt_logprobs[i] for i in range(1, len(text))]
    return torch.tensor([[row[token] for token in range(VOCAB_SIZE)] for row in rows])


def mean_difference(twins: Twins, group_dir: Path) -> float:
    """Of the two checkpoints' log-probabilities."""
    return float((logprobs(twins.quantized, group_dir) - logprobs(twins.dequantized, group_dir)).abs().mean())


def load_grouped(storage: Storage, cut: Cut, tensors: dict[str, Tensor]) -> GroupedPart:
    """As the loader does, which has compared the shapes. Tensors by their last name."""
    given = []
    for part in storage.parts(cut):
        tensor = tensors[part.name.removeprefix(f"{cut.name}.")]
        assert tensor.shape == part.shape
        assert tensor.dtype in part.dtypes
        given.append(part.cut(tensor))
    return Grouped(storage).load(cut, given, torch.float32)


def dequantized(part: GroupedPart, cut: Cut, storage: Storage) -> Tensor:
    """→ float32[rows, columns]"""
    columns = cut.columns.length
    group = storage.group or columns
    weight = sum((dequantize_int4(p, columns, group) for p in part.nibbles), torch.zeros(()))
    return weight if part.order is None else weight[:, part.order.argsort()]


def pack(codes: Tensor, bits: int, order: Sequence[int] = ()) -> Tensor:
    """uint8[n, m] → int32[n, m · bits / 32]: what `packing.unpack` unpacks."""
    if order:
        inverse = [order.index(field) for field in range(len(order))]
        codes = codes.reshape(len(codes), -1, len(order))[:, :, inverse].flatten(1)
    if bits == 4:
        pairs = codes.reshape(len(codes), -1, 2)
        codes = pairs[:, :, 0] | pairs[:, :, 1] << 4
    return codes.flatten().view(torch.int32).view(len(codes), -1)


def no_cache(_scheme: str) -> Cache:
    raise AssertionError("nobody asked for a cache")
