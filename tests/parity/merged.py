"""Models into which adapters are merged, by PEFT's formula."""

import math
import re
import shutil
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.adapters import setting_of

LINEAR = re.compile(r"\.(q|k|v|o|qkv|gate|up|down|gate_up|c)_(proj|attn|fc)$")


def linears(model: Path) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each linear layer in the decoder layers of a checkpoint."""
    stored = load_file(model / "model.safetensors")
    return {
        name.removesuffix(".weight"): _shape(model, tensor)
        for name, tensor in stored.items()
        if LINEAR.search(name.removesuffix(".weight"))
    }


def merged(model: Path, adapter: Path, into: Path) -> Path:
    """A checkpoint with W + scale · B A for each W, by PEFT's formula."""
    shutil.copytree(model, into)
    settings = msgspec.json.decode((adapter / "adapter_config.json").read_bytes())
    stored, factors = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in factors:
        if not name.endswith(".lora_A.weight"):
            continue
        a, b = factors[name], factors[name.replace("lora_A", "lora_B")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alpha = setting_of(settings, "alpha_pattern", module, "lora_alpha")
        scale = alpha / (math.sqrt(len(a)) if settings.get("use_rslora") else len(a))
        delta = scale * b @ a
        weight = stored[f"{module}.weight"]
        weight += delta.T if _is_transposed(model) else delta
    save_file(stored, into / "model.safetensors", metadata={"format": "pt"})
    return into


def _is_transposed(model: Path) -> bool:
    return "GPT2" in (model / "config.json").read_text()


def _shape(model: Path, tensor: Tensor) -> tuple[int, int]:
    rows, columns = tensor.shape
    return (columns, rows) if _is_transposed(model) else (rows, columns)
