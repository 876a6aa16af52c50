"""Llama against transformers in float32: log-probabilities at every position, and greedy text."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from protocol.sampling import SamplingParams
from tests.parity.conftest import Load
from tests.parity.reference import (
    MAX_LEN,
    VOCAB_SIZE,
    Reference,
    assert_equal,
    tokens,
    write_checkpoint,
)
from tests.worker.driver import Resident

OUTPUTS = 72

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries, untied": {},
    "one KV head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "all heads, own head_dim": {"num_key_value_heads": 4, "head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e3}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 5e5,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        }
    },
    "yarn, all settings": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.2,
            "mscale_all_dim": 0.8,
            "truncate": False,
            "rope_theta": 1e4,
        }
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def reference(plain: Path) -> Reference:
    return Reference(plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, tmp_path: Path, load: Load) -> None:
    folder = write_checkpoint(tmp_path / "model", **VARIANTS[variant])
    assert_equal(load(folder), Reference(folder), OUTPUTS)


def test_sharded_files(tmp_path: Path, load: Load) -> None:
    folder = write_checkpoint(tmp_path / "model", shard="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_equal(load(folder), Reference(folder), OUTPUTS)


def test_older_spelling_of_rope_scaling(plain: Path, tmp_path: Path, load: Load) -> None:
    folder = write_checkpoint(tmp_path / "model", **VARIANTS["llama3"])
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_scaling"] = parameters
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    assert_equal(load(folder), Reference(folder), OUTPUTS)


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_chunk_size_does_not_matter(chunk: int, plain: Path, reference: Reference, load: Load) -> None:
    driver = load(plain)
    prompt = tokens(50)
    (outputs,) = driver.run([driver.add(prompt)], OUTPUTS, chunk)
    assert reference.is_greedy(prompt, outputs, OUTPUTS)


@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_block_size_does_not_matter(block_size: int, plain: Path, reference: Reference, load: Load) -> None:
    driver = load(plain, block_size=block_size, num_kv_blocks=512)
    prompt = tokens(50)
    (outputs,) = driver.run([driver.add(prompt)], OUTPUTS, 16)
    assert reference.is_greedy(prompt, outputs, OUTPUTS)


def test_company_does_not_matter(plain: Path, reference: Reference, load: Load) -> None:
    """Sequences of all lengths come and go; some decode while others are in the middle of their prompt."""
    driver = load(plain)
    chance = random.Random(1)
    prompts = [tokens(length, seed=length) for length in (1, 2, 3, 9, 16, 17, 33, 64, 100, 128)]
    waiting = [driver.add(prompt) for prompt in prompts]
    running: list[Resident] = []
    finished: list[Resident] = []
    while waiting or running:
        if waiting:
            running.append(waiting.pop(0))
        counts = {seq: min(seq.left, chance.randint(1, 24)) for seq in running if chance.random() < 0.8}
        if not counts:
            continue
        driver.step(counts)
        for seq in [s for s in running if len(s.outputs) == OUTPUTS]:
            running.remove(seq)
            finished.append(seq)
            driver.drop(seq)
    for seq in finished:
        assert reference.is_greedy(seq.token_ids[: seq.num_prompt], seq.outputs, OUTPUTS)


def test_prefix_hit(plain: Path, reference: Reference, load: Load) -> None:
    """The second sequence reads its first 32 tokens from the blocks of the first, which lives on."""
    driver = load(plain, block_size=8)
    first, second = tokens(50), tokens(32) + tokens(9, seed=5)
    a = driver.add(first)
    driver.run([a], 3)
    b = driver.add(second, shared=[a.blocks[:4]])
    driver.run([a, b], OUTPUTS, chunk=5)
    assert reference.is_greedy(first, a.outputs, OUTPUTS)
    assert reference.is_greedy(second, b.outputs, OUTPUTS)


def test_prefix_hit_within_one_plan(plain: Path, reference: Reference, load: Load) -> None:
    """A plan may compute a prefix and a sequence that builds on it: all KV is written before any is read."""
    driver = load(plain, block_size=8)
    prompt = tokens(24)
    a = driver.add(prompt)
    driver.plan({a: 24})  # only to hand out its blocks
    a.resident = False
    b = driver.add(prompt + tokens(6, seed=5), shared=a.tables)
    driver.step({b: 6, a: 24})
    driver.run([a, b], OUTPUTS)
    assert reference.is_greedy(prompt, a.outputs, OUTPUTS)
    assert reference.is_greedy(b.token_ids[:30], b.outputs, OUTPUTS)


def test_restart_with_outputs(plain: Path, reference: Reference, load: Load) -> None:
    """A preempted sequence comes back with the tokens it had, into other blocks, in chunks."""
    driver = load(plain)
    prompt = tokens(30)
    before = driver.add(prompt)
    driver.run([before], 25)
    driver.drop(before)
    driver.run([driver.add(tokens(60, seed=3))], 2)  # dirties the blocks
    after = driver.add(prompt, outputs=before.outputs)
    driver.run([after], OUTPUTS, chunk=11)
    assert reference.is_greedy(prompt, after.outputs, OUTPUTS)


def test_to_the_last_position(plain: Path, reference: Reference, load: Load) -> None:
    driver = load(plain)
    prompt = tokens(MAX_LEN - 20)
    (outputs,) = driver.run([driver.add(prompt)], 20)
    assert reference.is_greedy(prompt, outputs, 20)


def test_bfloat16_is_close(plain: Path, reference: Reference, load: Load) -> None:
    """Eight bits of mantissa, through two layers: 0.1 in log-probability, where an error would give 1."""
    driver = load(plain, dtype="bfloat16")
    prompt = tokens(40)
    seq = driver.add(prompt, SamplingParams(temperature=0, prompt_logprobs=VOCAB_SIZE))
    driver.run([seq], 1)
    expected = reference.logprobs(prompt)
    ours = torch.tensor(
        [[seq.prompt_logprobs[i][token] for token in range(VOCAB_SIZE)] for i in range(1, len(prompt))]
    )
    assert (ours - expected[:-1]).abs().mean() < 0.1
