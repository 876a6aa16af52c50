"""Adapters beside each other in one batch: each sequence has the log-probabilities that transformers gives
for the model into which its adapter is merged."""

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams
from tests.parity.conftest import Load
from tests.parity.merged import linears, merged
from tests.parity.reference import TOLERANCE, VOCAB_SIZE, Reference, tokens, write_checkpoint
from tests.worker.adapters import write_adapter
from tests.worker.driver import Resident

EVERYTHING = SamplingParams(temperature=0, logprobs=VOCAB_SIZE, prompt_logprobs=VOCAB_SIZE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
}
NAMES = ("all", "attention", "network")


def write_three(folder: Path, model: Path) -> dict[str, Path]:
    """Of several ranks and scales; two of them leave a part of each layer as it is."""
    modules = linears(model)
    attention = {m: s for m, s in modules.items() if "attn" in m and "k_proj" not in m}
    network = {m: s for m, s in modules.items() if "mlp" in m and ".1." in m}
    ranks, alphas = {"up_proj": 2}, {"down_proj": 1.5, "mlp.c_proj": 1.5}
    return {
        "all": write_adapter(folder / "all", modules, seed=1, r=5, lora_alpha=4),
        "attention": write_adapter(
            folder / "attention", attention, seed=2, r=16, lora_alpha=3, use_rslora=True
        ),
        "network": write_adapter(
            folder / "network", network, seed=3, r=3, lora_alpha=6, rank_pattern=ranks, alpha_pattern=alphas
        ),
    }


def flags(adapters: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in adapters.items()]


def assert_as(reference: Reference, seq: Resident) -> None:
    expected = reference.logprobs(seq.token_ids)
    ours = [seq.prompt_logprobs[i] for i in sorted(seq.prompt_logprobs)] + seq.logprobs
    table = torch.tensor([[row[token] for token in range(VOCAB_SIZE)] for row in ours])
    first = len(seq.token_ids) - 1 - len(table)
    torch.testing.assert_close(table, expected[first:-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cpu_kernels", ["native", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_three_adapters_and_none(family: str, cpu_kernels: str, tmp_path: Path, load: Load) -> None:
    model_type, changes = FAMILIES[family]
    model = write_checkpoint(tmp_path / "model", model_type, **changes)
    adapters = write_three(tmp_path, model)
    driver = load(model, lora=flags(adapters), cpu_kernels=cpu_kernels)
    assert driver.runner.facts.adapters == NAMES
    plain = driver.add(tokens(41), EVERYTHING)
    mine = {name: driver.add(tokens(41), EVERYTHING, adapter=name) for name in NAMES}
    driver.run([plain, *mine.values()], 3, chunk=7)
    again = driver.add(tokens(30, 5), EVERYTHING, adapter="all")  # a prompt beside decodes of all kinds
    driver.run([plain, *mine.values(), again], 8, chunk=9)
    hits = [
        driver.add(tokens(41), EVERYTHING, shared=[seq.tables[0][:5]], adapter=name)
        for name, seq in mine.items()
    ]
    driver.run(hits, 4)

    assert_as(Reference(model), plain)
    for name, seq in mine.items():
        reference = Reference(merged(model, adapters[name], tmp_path / f"merged-{name}"))
        assert_as(reference, seq)
        if name == "all":
            assert_as(reference, again)
    for hit, seq in zip(hits, mine.values(), strict=True):
        assert hit.outputs == seq.outputs[:4]
    answers = {tuple(seq.outputs) for seq in (plain, *mine.values())}
    assert len(answers) == 4, "the adapters change nothing"
