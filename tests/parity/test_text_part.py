"""Checkpoints that can also see: their text part against transformers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Gemma3ForConditionalGeneration

from protocol.errors import StartupError
from tests.parity.conftest import Load
from tests.parity.families import WINDOW
from tests.parity.reference import SHAPE, Reference, assert_equal

TEXT: dict[str, Any] = {
    **SHAPE,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Whole(Reference):
    def __init__(self, folder: Path) -> None:
        load: Any = AutoModelForImageTextToText.from_pretrained
        self.model = load(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("gemma3")
    create: Any = Gemma3ForConditionalGeneration
    config = AutoConfig.for_model("gemma3", text_config=TEXT, vision_config=VISION, dtype="float32")
    create(config).save_pretrained(folder)
    return folder


def rename(folder: Path, old: str, new: str) -> dict[str, torch.Tensor]:
    path = folder / "model.safetensors"
    stored = {
        new + name.removeprefix(old) if name.startswith(old) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(stored, path)
    return stored


def test_text(folder: Path, load: Load) -> None:
    """In both ways of naming tensors."""
    reference = Whole(folder)
    names = set(load_file(folder / "model.safetensors"))
    assert any("vision_tower" in name for name in names)
    old, new = "language_model.model.", "model.language_model."
    if any(name.startswith(new) for name in names):
        old, new = new, old
    assert_equal(load(folder), reference, 40)
    rename(folder, old, new)
    assert_equal(load(folder), reference, 40)


def test_text_in_transformers_code(tmp_path: Path, load: Load) -> None:
    """Of a family that is not declared: parts for pictures get no memory, and rotations by height and width
    are those of text."""
    torch.manual_seed(7)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
    text = {**SHAPE, "rope_parameters": rope}
    config = AutoConfig.for_model("qwen2_5_vl", text_config=text, vision_config=vision, dtype="float32")
    create: Any = AutoModelForImageTextToText.from_config
    create(config).save_pretrained(tmp_path)
    driver = load(tmp_path)
    assert_equal(driver, Whole(tmp_path), 40)
    assert driver.runner.facts.weights_bytes < sum(
        t.nbytes for t in load_file(tmp_path / "model.safetensors").values()
    )


def test_other_tensors_are_named(folder: Path, tmp_path: Path, load: Load) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    stored = load_file(tmp_path / "model.safetensors")
    save_file({**stored, "audio_tower.x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(StartupError, match=r"'audio_tower.x', which is neither of its text"):
        load(tmp_path)


def test_a_malformed_part_is_named(folder: Path, tmp_path: Path, load: Load) -> None:
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    config["text_config"]["hidden_size"] = "wide"
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(StartupError, match=r"text_config in config.json is malformed: .*hidden_size"):
        load(tmp_path, load_format="dummy")
