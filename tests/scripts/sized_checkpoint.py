"""As much of a checkpoint as has sizes: config.json and the header of its weights. The data is not there."""

import json
from pathlib import Path
from typing import Any

CONFIG = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64,
    "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
TENSORS = {
    "model.layers.0.mlp.up_proj.weight": ("BF16", [1000, 64]),
    "norm.weight": ("BF16", [64]),
    "lm_head.weight": ("BF16", [1000, 64]),
}
MATRIX, VECTOR = 64000, 64
KV_PER_TOKEN = 2 * 4 * 2 * 8 * 2


def checkpoint(folder: Path, tensors: dict[str, tuple[str, list[int]]] | None = None, **config: Any) -> Path:
    """`tensors`: (type, shape) by name; `config`: what is different from CONFIG."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {
        name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]}
        for name, (kind, shape) in ({**TENSORS} if tensors is None else tensors).items()
    }
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    return folder
