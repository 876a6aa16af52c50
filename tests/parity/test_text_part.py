"""Checkpoints that can also see: their text part against transformers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Gemma3ForConditionalGeneration

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.parity.conftest import Load
from tests.parity.families import WINDOW
from tests.parity.reference import SHAPE, Reference, assert_equal
from tests.worker.driver import write_config
from worker.checkpoint import Checkpoint
from worker.models.decoder import Decoder
from worker.models.registry import build
from worker.models.transformers_model import TransformersModel
from worker.parallel import Group

TEXT: dict[str, Any] = {
    **SHAPE,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
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


SEEING = {
    "mistral3": {"text_config": {"model_type": "mistral", **SHAPE, "head_dim": 16}, "vision_config": VISION},
    "qwen2_5_vl": {
        "text_config": {**SHAPE, "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
    },
    "qwen3_vl": {
        "text_config": {**SHAPE, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2]}},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0],
        },
    },
}


@pytest.mark.parametrize("model_type", SEEING)
def test_text_of_others(model_type: str, tmp_path: Path, load: Load) -> None:
    """By the declared family and by transformers' code: parts for pictures get no memory, and rotations by
    height and width are those of text."""
    torch.manual_seed(7)
    create: Any = AutoModelForImageTextToText.from_config
    create(AutoConfig.for_model(model_type, **SEEING[model_type], dtype="float32")).save_pretrained(tmp_path)
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    reference = Whole(tmp_path)
    for impl, kind in (("tern", Decoder), ("transformers", TransformersModel)):
        driver = load(tmp_path, model_impl=impl)
        assert type(driver.runner.served.model) is kind
        assert driver.runner.facts.weights_bytes < stored
        assert_equal(driver, reference, 20)


def test_a_quantized_text_part(tmp_path: Path, load: Load) -> None:
    """FP8 under the whole's names: what is stored so is found."""
    torch.manual_seed(7)
    create: Any = AutoModelForImageTextToText.from_config
    create(AutoConfig.for_model("mistral3", **SEEING["mistral3"], dtype="float32")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith("layers.0.mlp.up_proj.weight"))
    codes = stored[name].to(torch.float8_e4m3fn)
    save_file({**stored, name: codes.float()}, path)
    reference = Whole(tmp_path)
    save_file({**stored, name: codes, f"{name}_scale": torch.ones(1)}, path)
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static"}
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    assert_equal(load(tmp_path), reference, 20)


def test_settings_at_the_top(tmp_path: Path, load: Load) -> None:
    """As the first Qwen-VLs were published, which name tensors like a text model's, and `visual`."""
    torch.manual_seed(7)
    create: Any = AutoModelForImageTextToText.from_config
    create(AutoConfig.for_model("qwen2_5_vl", **SEEING["qwen2_5_vl"], dtype="float32")).save_pretrained(
        tmp_path
    )
    reference = Whole(tmp_path)
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    text = config.pop("text_config")
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text |= {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": rope}
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(text | config))
    rename(tmp_path, "model.language_model.", "model.")
    rename(tmp_path, "model.visual.", "visual.")
    assert_equal(load(tmp_path), reference, 20)


def test_another_text_part_is_another_model(tmp_path: Path) -> None:
    text = {"model_type": "ministral3", "dtype": "bfloat16"}
    folder = write_config(
        tmp_path / "model", architectures=["Mistral3ForConditionalGeneration"], text_config=text
    )
    with pytest.raises(StartupError, match="not declared"):
        build(Checkpoint(folder, with_weights=False), ModelOptions(model_impl="tern"), Group())


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
