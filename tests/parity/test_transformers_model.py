"""Families in transformers' own code with our attention, against transformers alone; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.parity.conftest import Load
from tests.parity.families import FAMILIES, LONGROPE, UNDECLARED
from tests.parity.reference import VOCAB_SIZE, Reference, assert_equal, tokens, write_checkpoint
from tests.worker.driver import write_config
from worker.checkpoint import Checkpoint
from worker.kernels.attention import AttentionMetadata
from worker.kernels.bent_attention import bent_attention
from worker.kernels.paged_kv import PagedKV
from worker.models import transformers_attention
from worker.models.registry import build
from worker.models.transformers_model import TransformersModel
from worker.parallel import Group

OUTPUTS = 40


@pytest.mark.parametrize("family", UNDECLARED)
def test_families_that_tern_does_not_declare(family: str, tmp_path: Path, load: Load) -> None:
    """Every position of a prompt in chunks, and of its greedy continuation, decoded."""
    model_type, changes = UNDECLARED[family]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    assert_equal(load(folder), Reference(folder), OUTPUTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_declared_families_take_this_path_when_asked(family: str, tmp_path: Path, load: Load) -> None:
    model_type, changes = FAMILIES[family]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    driver = load(folder, model_impl="transformers")
    assert type(driver.runner.served.model) is TransformersModel
    assert_equal(driver, Reference(folder), OUTPUTS)


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With windows, soft caps and a scaled embedding."""
    model_type, changes = UNDECLARED["gemma2"]
    return write_checkpoint(tmp_path_factory.mktemp("gemma2"), model_type, **changes)


def test_200_tokens(gemma2: Path, load: Load) -> None:
    assert_equal(load(gemma2), Reference(gemma2), 200)


@pytest.mark.parametrize(("chunk", "block_size"), [(1, 4), (16, 1), (1000, 5)])
def test_chunks_and_blocks_do_not_matter(chunk: int, block_size: int, gemma2: Path, load: Load) -> None:
    driver = load(gemma2, block_size=block_size, num_kv_blocks=512)
    prompt = tokens(50)
    (outputs,) = driver.run([driver.add(prompt)], OUTPUTS, chunk)
    assert Reference(gemma2).is_greedy(prompt, outputs, OUTPUTS)


def test_company_and_prefix_hits_do_not_matter(gemma2: Path, load: Load) -> None:
    driver, reference = load(gemma2, block_size=8), Reference(gemma2)
    prompts = [tokens(n, seed=n) for n in (1, 9, 33, 33, 64)]
    running = [driver.add(prompt) for prompt in prompts]
    driver.run(running[:-1], 3, chunk=11)
    driver.step({running[-1]: 32})
    prompts.append(prompts[-1][:32] + tokens(9, seed=5))
    running.append(driver.add(prompts[-1], shared=running[-1].tables))
    outputs = driver.run(running, OUTPUTS, chunk=5)
    for prompt, told in zip(prompts, outputs, strict=True):
        assert reference.is_greedy(prompt, told, OUTPUTS)


@pytest.mark.parametrize("original", [32, 256])
def test_longrope_keeps_one_set_of_frequencies(original: int, tmp_path: Path, load: Load) -> None:
    changes: dict[str, Any] = {"original_max_position_embeddings": original, "rope_parameters": LONGROPE}
    folder = write_checkpoint(tmp_path / "model", "phi3", **changes)
    assert_equal(load(folder, model_impl="transformers"), Reference(folder), OUTPUTS)
    prompt = tokens(20)  # short: with the long set, too, as in our own declaration
    theirs, ours = (load(folder, model_impl=impl) for impl in ("transformers", "tern"))
    assert theirs.run([theirs.add(prompt)], 5) == ours.run([ours.add(prompt)], 5)


def test_dynamic_frequencies_stay_the_default_within_the_trained_length(tmp_path: Path, load: Load) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    folder = write_checkpoint(tmp_path / "model", "olmo2", rope_parameters=rope)
    assert_equal(load(folder), Reference(folder), OUTPUTS)


def test_sinks_without_kernels_in_c(tmp_path: Path, load: Load) -> None:
    model_type, changes = UNDECLARED["gpt_oss, sinks"]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    assert_equal(load(folder, cpu_kernels="torch"), Reference(folder), OUTPUTS)


def test_bfloat16(gemma2: Path, load: Load) -> None:
    driver = load(gemma2, dtype="bfloat16")
    assert driver.runner.served.cache.tensor.dtype == torch.bfloat16
    ((output,),) = driver.run([driver.add(tokens(20))], 1)
    assert 0 <= output < VOCAB_SIZE


def test_a_checkpoint_of_the_bare_model(tmp_path: Path, load: Load) -> None:
    """Names without the prefix, the head tied, and frequencies as old files hold them."""
    folder = write_checkpoint(tmp_path / "model", "olmo2", tie_word_embeddings=True)
    reference = Reference(folder)
    path = folder / "model.safetensors"
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    stored["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(stored, path)
    assert_equal(load(folder), reference, OUTPUTS)


SHAPE: dict[str, Any] = {"max_position_embeddings": 64, "num_hidden_layers": 2, "vocab_size": 96}
_MAMBA2: dict[str, Any] = {"num_heads": 8, "head_dim": 16}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "state space": ("mamba", {}, "conv1d' mixes neighbouring tokens"),
    "hybrid": ("qwen3_next", {}, "linear_attn.conv1d' mixes neighbouring tokens"),
    "recurrent": ("rwkv", {"context_length": 64}, "Rwkv: it has 2 layers and attends 0 times"),
    "twice a layer": ("diffllama", {}, "it has 2 layers and attends 4 times.* several times"),
    "both directions": ("bert", {}, "Bert: its attention looks in both directions"),
    "chunks": ("llama4_text", {}, "Llama4Text: its attention mask follows more than positions"),
    "code without the interface": ("falcon", {}, "Falcon: its code .* does not use the attention interface"),
    "position bias": ("bloom", {"seq_length": 64}, "Bloom: its code .* does not use the attention interface"),
    "numbers that JSON lacks": (
        "mamba2",
        _MAMBA2 | {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
        "conv1d' mixes",
    ),
    "encoder": ("t5", {}, "'t5' has an encoder"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "'gpt2' has an encoder"),
    "no language model": ("vit", {}, "'vit' is not a model that writes text"),
    "unknown": ("no_such_type", {}, "model_type 'no_such_type' is not one that transformers .* has code"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_before_weights_are_read(case: str, tmp_path: Path) -> None:
    model_type, changes, message = REFUSED[case]
    folder = write_config(tmp_path / "model", architectures=[], model_type=model_type, **SHAPE | changes)
    checkpoint = Checkpoint(folder, with_weights=False)
    with pytest.raises(StartupError, match=message):
        build(checkpoint, ModelOptions(model_impl="transformers"), Group())


def test_an_architecture_that_transformers_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", architectures=["BirdForCausalLM"], model_type="llama", **SHAPE)
    checkpoint = Checkpoint(folder, with_weights=False)
    with pytest.raises(StartupError, match=r"\['BirdForCausalLM'\] are not .* 'llama' is LlamaForCausalLM"):
        build(checkpoint, ModelOptions(), Group())


def test_several_workers_are_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", architectures=["Olmo2ForCausalLM"], model_type="olmo2")
    group = Group()
    group.size = 2
    with pytest.raises(StartupError, match="cannot be spread over several workers"):
        build(Checkpoint(folder, with_weights=False), ModelOptions(), group)


def test_only_declared_families_on_wish(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", architectures=["Olmo2ForCausalLM"], model_type="olmo2")
    with pytest.raises(StartupError, match=r"'Olmo2ForCausalLM'.* are not declared; Tern declares"):
        build(Checkpoint(folder, with_weights=False), ModelOptions(model_impl="tern"), Group())


def test_weights_are_checked_by_name_and_shape(tmp_path: Path, load: Load) -> None:
    model_type, changes = UNDECLARED["olmoe"]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    path = folder / "model.safetensors"
    stored = load_file(path)
    expert = "model.layers.1.mlp.experts.2.up_proj.weight"
    norm = "model.layers.0.self_attn.q_norm.weight"
    for broken, message in (
        ({**stored, norm: torch.ones(7)}, r"q_norm.weight' has the shape \[7\]"),
        (
            {**stored, "model.extra": torch.ones(7)},
            "does not use: 'model.extra'",
        ),
        ({n: t for n, t in stored.items() if n != norm}, "the checkpoint lacks .*q_norm"),
        ({**stored, expert: torch.ones(7, 64)}, "experts.* cannot be converted"),
        ({n: t for n, t in stored.items() if n != expert}, "experts.* cannot be converted|has the shape"),
    ):
        save_file(broken, path)
        with pytest.raises(StartupError, match=message):
            load(folder)


def test_what_a_trace_cannot_see_is_found_by_comparing(
    gemma2: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(
        query: Tensor,
        cache: PagedKV,
        metadata: AttentionMetadata,
        scale: float,
        soft_cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        return bent_attention(query, cache, metadata, 2 * scale, soft_cap, sinks)

    monkeypatch.setattr(transformers_attention, "bent_attention", wrong)
    with pytest.raises(StartupError, match=r"does not compute what transformers computes: .* by 0\."):
        load(gemma2)
