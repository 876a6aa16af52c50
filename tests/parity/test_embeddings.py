"""Vectors against transformers' hidden states, in chunks and in company; checkpoints without a head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.errors import StartupError
from tests.parity.conftest import Load
from tests.parity.families import FAMILIES
from tests.parity.reference import TOLERANCE, Reference, tokens, write_checkpoint
from worker.pooling import kind_of

LENGTHS = (1, 7, 30, 41)
POOLING = "sentence_transformers.models.Pooling"


def write_pooling(folder: Path, modules: Sequence[str] = (), **modes: bool) -> None:
    """The files of sentence-transformers beside a checkpoint."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    config = {"word_embedding_dimension": 64, **{f"pooling_mode_{mode}": on for mode, on in modes.items()}}
    (folder / "1_Pooling" / "config.json").write_bytes(msgspec.json.encode(config))
    entries = [{"idx": i, "name": str(i), "path": f"{i}_{kind.rpartition('.')[2]}", "type": kind}
               for i, kind in enumerate(modules)]  # fmt: skip
    (folder / "modules.json").write_bytes(msgspec.json.encode(entries))


@torch.no_grad()
def expected(reference: Reference, prompt: list[int], kind: str) -> Tensor:
    body: Any = reference.model.base_model
    states: Tensor = body(torch.tensor([prompt])).last_hidden_state[0]
    return F.normalize(states[-1] if kind == "last" else states.mean(0), dim=0)


@pytest.mark.parametrize("kind", ["last", "mean"])
@pytest.mark.parametrize(
    ("family", "implementation"),
    [*((family, "tern") for family in ("qwen3", "gemma3", "gpt2")), ("mistral", "transformers")],
)
def test_vectors(family: str, implementation: str, kind: str, tmp_path: Path, load: Load) -> None:
    model_type, changes = FAMILIES[family]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    write_pooling(folder, lasttoken=kind == "last", mean_tokens=kind == "mean")
    reference = Reference(folder)
    driver = load(folder, model_impl=implementation)
    assert (driver.runner.facts.pooling, driver.runner.facts.embedding_size) == (kind, 64)
    prompts = [tokens(length, seed=length) for length in LENGTHS]
    wanted = torch.stack([expected(reference, prompt, kind) for prompt in prompts])
    for chunk in (1, 6, 1000):
        vectors = torch.tensor([list(vector) for vector in driver.embed(prompts, chunk)])
        torch.testing.assert_close(vectors, wanted, atol=TOLERANCE, rtol=0)


def test_beside_answers(tmp_path: Path, load: Load) -> None:
    """The same step computes tokens of one sequence and the vector of another."""
    folder = write_checkpoint(tmp_path / "model", "qwen3", head_dim=16)
    reference = Reference(folder)
    driver = load(folder)
    answer, asked = driver.add(tokens(9)), driver.add(tokens(20, seed=1))
    asked.embed = True
    driver.step({answer: 9})
    driver.step({answer: 1, asked: 20})
    assert answer.outputs == reference.greedy(tokens(9), 2)
    wanted = expected(reference, tokens(20, seed=1), "last")
    torch.testing.assert_close(torch.tensor(list(asked.embedding or ())), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_a_checkpoint_without_a_head(architecture: str, tmp_path: Path, load: Load) -> None:
    """As embedding models are published: no lm_head though it is not tied, and names of the bare model."""
    folder = write_checkpoint(tmp_path / "model", "qwen3", head_dim=16)
    reference = Reference(folder)
    stored = load_file(folder / "model.safetensors")
    del stored["lm_head.weight"]
    save_file({n.removeprefix("model."): t for n, t in stored.items()}, folder / "model.safetensors")
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(msgspec.json.encode({**config, "architectures": [architecture]}))
    driver = load(folder)
    assert not driver.runner.facts.generates
    (vector,) = driver.embed([tokens(12)])
    wanted = expected(reference, tokens(12), "last")
    torch.testing.assert_close(torch.tensor(list(vector)), wanted, atol=TOLERANCE, rtol=0)


def test_numbers_that_are_not_finite_fail_alone(tmp_path: Path, load: Load) -> None:
    folder = write_checkpoint(tmp_path / "model", "qwen3", head_dim=16)
    driver = load(folder)
    sick, well = driver.add(tokens(9)), driver.add(tokens(20, seed=1))
    sick.embed = well.embed = True
    driver.step({sick: 5, well: 5})
    driver.runner.spoil(sick.blocks)
    driver.step({sick: 4, well: 15})
    assert (sick.failure, sick.embedding) == ("numerical_error", None)
    assert (well.failure, len(well.embedding or ())) == ("", 64)


def test_how_checkpoints_say_what_is_pooled(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == "last"
    write_pooling(tmp_path, mean_tokens=False, lasttoken=True, cls_token=False)
    assert kind_of(tmp_path) == "last"
    write_pooling(tmp_path, mean_tokens=True, lasttoken=False)
    assert kind_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert kind_of(tmp_path) == "mean"


@pytest.mark.parametrize(
    ("modules", "modes", "message"),
    [
        ((), {"cls_token": True}, r"1_Pooling/config.json pools by cls_token, which is not supported"),
        ((), {"mean_tokens": True, "max_tokens": True}, "pools by mean and max"),
        ((), {"weightedmean_tokens": True}, "pools by weightedmean,"),
        ((POOLING, "sentence_transformers.models.Dense"), {}, "modules.json has a 'Dense'"),
    ],
)
def test_other_ways_are_refused(
    modules: tuple[str, ...], modes: dict[str, bool], message: str, tmp_path: Path
) -> None:
    write_pooling(tmp_path, modules, **modes)
    with pytest.raises(StartupError, match=message):
        kind_of(tmp_path)
