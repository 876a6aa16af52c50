"""config.jsons: of published models, in older spellings, and with what is not supported."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.worker.published import PUBLISHED
from tests.worker.published_sizes import SIZES
from worker.checkpoint import Checkpoint
from worker.models.gemma3 import Gemma3Config
from worker.models.phi3 import Phi3Config
from worker.models.qwen3_moe import Qwen3MoeConfig
from worker.models.registry import MODELS, Model, build
from worker.parallel import Group
from worker.weights import Wants


def build_of(folder: Path, config: dict[str, Any], group: Group | None = None) -> tuple[Model, Wants]:
    """Without memory for its weights."""
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    with torch.device("meta"):
        return build(Checkpoint(folder, with_weights=False), ModelOptions(), group or Group())


@pytest.mark.parametrize("name", [*PUBLISHED, *SIZES])
def test_published_sizes(name: str, tmp_path: Path) -> None:
    known = (PUBLISHED | SIZES)[name]
    model, wants = build_of(tmp_path / "model", known.config)
    parts = set(wants.parts())  # a tied head and its embedding are one
    assert sum(math.prod(part.sizes) for part in parts) == known.num_parameters
    assert sum(math.prod(shape) for shape in {part.name: part.shape for part in parts}.values()) == (
        known.num_parameters
    )
    kv_numbers = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    assert kv_numbers * wants.dtype.itemsize == known.kv_bytes
    assert model.max_len == known.max_len


def test_every_family_has_a_published_size() -> None:
    assert {name for known in PUBLISHED.values() for name in known.config["architectures"]} == set(MODELS)


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"Qwen3-30B-A3B"}))  # many tensors
def test_ranks_share_all_matrices_but_routers_and_positions(name: str, tmp_path: Path) -> None:
    _, wants = build_of(tmp_path / "whole", PUBLISHED[name].config)
    whole = {part.name: part.shape for part in wants.parts()}
    held: Counter[str] = Counter()
    for rank in range(2):
        group = Group()
        group.rank, group.size = rank, 2
        _, wanted = build_of(tmp_path / f"rank{rank}", PUBLISHED[name].config, group)
        for part in set(wanted.parts()):
            held[part.name] += math.prod(part.sizes)
    for tensor, shape in whole.items():
        if len(shape) == 2 and not tensor.endswith((".gate.weight", "wpe.weight")):
            one_head = PUBLISHED[name].config.get("num_key_value_heads") == 1
            twice = one_head and ("k_proj" in tensor or "v_proj" in tensor)
            assert held[tensor] == math.prod(shape) * (2 if twice else 1), tensor


def test_windows_of_published_models(tmp_path: Path) -> None:
    found = {
        name: set(build_of(tmp_path / name, known.config)[0].windows) for name, known in PUBLISHED.items()
    }
    windows = {name: kinds for name, kinds in found.items() if kinds != {None}}
    assert windows == {"Mistral-7B-v0.1": {4096}, "Phi-4-mini": {262144}, "Gemma-3-1B": {512, None}}


def config_of(kind: type[Any], name: str, **changes: Any) -> Any:
    config = {**PUBLISHED[name].config, **changes}
    return msgspec.convert(config, kind)


def test_gemma_spellings() -> None:
    old = config_of(Gemma3Config, "Gemma-3-1B", rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert old.windows[:7] == [512] * 5 + [None, 512]
    assert (old.rope.kind, old.local_rope.kind) == ("linear", "default")
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": None}
    kinds = ["full_attention", "sliding_attention"] * 13
    new = config_of(Gemma3Config, "Gemma-3-1B", rope_parameters=ropes, layer_types=kinds)
    assert new.windows[:3] == [None, 512, None]
    assert (new.rope.kind, new.local_rope.kind) == ("linear", "default")
    wants = Wants(torch.float32)
    for config in (old, new):
        rotaries = config.rotaries((None, 512), wants)
        for rotary in rotaries.values():
            rotary.cover(9)
        position = torch.tensor([8])
        # Dimension 1 of 256 turns 8 / theta^(2/256) radians, a global layer 8 times slower.
        cos = {window: float(rotary.at(position)[0][0, 0, 1]) for window, rotary in rotaries.items()}
        assert cos[512] == pytest.approx(math.cos(8 / 1e4 ** (2 / 256)), abs=1e-5)
        assert cos[None] == pytest.approx(math.cos(1 / 1e6 ** (2 / 256)), abs=1e-5)


def test_phi_spellings() -> None:
    old = config_of(Phi3Config, "Phi-4-mini")
    scaling = {**PUBLISHED["Phi-4-mini"].config["rope_scaling"], "type": "su"}
    older = config_of(Phi3Config, "Phi-4-mini", rope_scaling=scaling)
    new = config_of(
        Phi3Config,
        "Phi-4-mini",
        rope_scaling=None,
        partial_rotary_factor=None,
        rope_parameters={**scaling, "type": None, "rope_type": "longrope", "partial_rotary_factor": 0.75},
    )
    for config in (old, older, new):
        config.check()
        assert (config.rope.kind, config.rotary_dim) == ("longrope", 96)


def test_qwen3_moe_spellings() -> None:
    assert config_of(Qwen3MoeConfig, "Qwen3-30B-A3B").experts == 128
    newer = {"num_experts": None, "num_local_experts": 64}
    assert config_of(Qwen3MoeConfig, "Qwen3-30B-A3B", **newer).experts == 64


def test_longrope_follows_the_length_that_is_served(tmp_path: Path) -> None:
    """One set of frequencies for all sequences: keys in the cache would not fit another."""
    config = config_of(Phi3Config, "Phi-4-mini")
    rotary = config.rotaries((None,), Wants(torch.float32))[None]
    angles = []
    for served in (4096, 4097):
        rotary.cover(served)
        cos, sin = (half[0, 0, 1 + 48].item() for half in rotary.at(torch.tensor([1])))
        magnitude = math.sqrt(1 + math.log(32) / math.log(4096))
        assert math.hypot(cos, sin) == pytest.approx(magnitude, abs=1e-5)
        angles.append(math.atan2(sin, cos))
    assert angles[0] == pytest.approx(1e4 ** (-2 / 96), abs=1e-6)
    assert angles[1] == pytest.approx(1e4 ** (-2 / 96) / 1.5, abs=1e-6)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "soft cap of scores": (
        "Gemma-3-1B",
        {"attn_logit_softcapping": 50.0},
        "attn_logit_softcapping = 50.0 is not supported for Gemma3",
    ),
    "both directions": ("Gemma-3-1B", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "gemma activation": ("Gemma-3-1B", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
    "local rope": (
        "Gemma-3-1B",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
        "'linear' needs 'factor'",
    ),
    "another kind of layer": (
        "Gemma-3-1B",
        {"layer_types": ["chunked_attention"] * 26},
        "layer_types has 'chunked_attention'",
    ),
    "too few layers": ("Gemma-3-1B", {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
    "no window": ("Gemma-3-1B", {"sliding_window": None}, "gives no sliding_window"),
    "gpt2 activation": ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    "gpt2 heads": ("gpt2", {"n_head": 7}, "7 heads and n_embd 768 do not fit"),
    "yarn in phi": (
        "Phi-4-mini",
        {"rope_scaling": {"type": "yarn", "factor": 2}},
        "'yarn' is not supp.*Phi3",
    ),
    "factors": (
        "Phi-4-mini",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor has 1 numbers; 96 rotated dimensions need 48",
    ),
    "odd part": ("Phi-4-mini", {"partial_rotary_factor": 0.76}, "do not fit together"),
    "more picked than there are": ("Mixtral-8x7B", {"num_experts_per_tok": 9}, "is 9, but there are 8"),
    "as many in qwen": ("Qwen3-30B-A3B", {"num_experts": 4}, "is 8, but there are 4"),
    "ntk": ("Qwen2.5-0.5B", {"rope_scaling": {"type": "ntk"}}, "rope_type 'ntk'"),
    "sections": ("Qwen2.5-0.5B", {"rope_scaling": {"sections": [1]}}, "unknown field `sections`"),
    "qwen in part": ("Qwen3-0.6B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    "mistral activation": ("Mistral-7B-v0.1", {"hidden_act": "gelu"}, "not supported for Mistral"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, changes, message = REFUSED[case]
    with pytest.raises(StartupError, match=message):
        build_of(tmp_path / "model", {**PUBLISHED[name].config, **changes})
