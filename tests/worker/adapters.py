"""Random LoRA adapters, as PEFT writes them. Without torch."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file


def write_adapter(
    folder: Path, modules: Mapping[str, tuple[int, int]], *, seed: int = 0, std: float = 0.3, **config: object
) -> Path:
    """`modules`: (rows, columns) of each that is changed. `config`: of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    draw = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in modules.items():
        rank = int(setting_of(settings, "rank_pattern", module, "r"))
        for which, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            name = f"base_model.model.{module}.lora_{which}.weight"
            tensors[name] = draw.standard_normal(shape, dtype=np.float32) * np.float32(std)
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode(settings))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def setting_of(settings: Mapping[str, object], pattern: str, module: str, default: str) -> float:
    patterns = settings.get(pattern) or {}
    assert isinstance(patterns, dict)
    found = [value for key, value in patterns.items() if module.endswith(f".{key}")]
    value = found[0] if found else settings[default]
    assert isinstance(value, int | float)
    return value
