"""Linear layers of models in transformers' own code are ours, and rounded as all others are."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from protocol.errors import StartupError
from tests.parity.families import UNDECLARED
from tests.parity.reference import Reference, tokens, write_checkpoint
from tests.worker.driver import quiet
from tests.worker.quantization.checkpoints import Quantize, logprobs, mean_difference, write_twins
from tests.worker.quantization.test_fp8 import BLOCKS, in_blocks
from tests.worker.quantization.test_gptq_awq import served
from tests.worker.quantization.test_rounding import ROUNDED
from worker.models.transformers_linear import Linears, name_others
from worker.quantization.rounding import Rounding
from worker.weights import Wants, load

EXACT = 1e-4
"""Of log-probabilities, where inputs stay as they are: what the order of sums changes, as everywhere."""
INPUTS_ROUNDED = 0.05
"""Their mean difference where inputs are rounded to 8 bits: 0.01 and 0.02 was measured. A matrix that is
transposed or another's is worth more than 1."""
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
AS_IT_IS = re.compile(r"embed_in|embed_tokens|wte|wpe|mlp\.gate\.|router|bias")
HEAD_TOO = re.compile(f"{AS_IT_IS.pattern}|lm_head|embed_out")
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "olmo2": ("olmo2", {}, "fp8"),
    "starcoder2, biases": ("starcoder2", {"use_bias": True}, "nf4"),
    "stablelm, biases": ("stablelm", {"use_qkv_bias": True}, "int8"),
    "granite": (*UNDECLARED["granite"], "int4"),
    "gpt_neox, one matrix for q, k and v": ("gpt_neox", {}, "fp8"),
    "minicpm3, latent attention": (*UNDECLARED["minicpm3, latent attention"], "nf4"),
    "gpt2, transposed": ("gpt2", {}, "nf4"),
    "olmoe, experts": (*UNDECLARED["olmoe"], "fp8"),
    "gpt_oss, experts that are transposed and have biases": (*UNDECLARED["gpt_oss, sinks"], "nf4"),
}


def write_rounded(
    folder: Path, to: Path, rounded: Callable[[Tensor], Tensor], leave: re.Pattern[str]
) -> Path:
    """The same checkpoint with what its rounded matrices mean."""
    to.mkdir()
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored = load_file(folder / "model.safetensors")
    for name, tensor in stored.items():
        if tensor.dim() > 1 and not leave.search(name):
            stored[name] = rounded(tensor).contiguous()
    save_file(stored, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_rounded_weights(case: str, tmp_path: Path) -> None:
    model_type, changes, scheme = CASES[case]
    with_head = scheme == "fp8"  # others round inputs of the head to 8 bits
    folder = write_checkpoint(tmp_path / "model", model_type, **UNTIED, **changes)
    options = {"model_impl": "transformers", "quantization": scheme, "quantize_head": with_head}
    ours = logprobs(folder, tmp_path, **options)

    def rounded(weight: Tensor) -> Tensor:
        if weight.dim() == 3:
            return torch.stack([ROUNDED[scheme](of_one.t()).t() for of_one in weight])
        return ROUNDED[scheme](weight.t()).t() if model_type == "gpt2" else ROUNDED[scheme](weight)

    meant = write_rounded(folder, tmp_path / "rounded", rounded, AS_IT_IS if with_head else HEAD_TOO)
    off = (ours - Reference(meant).logprobs(tokens(40))[:-1]).abs()
    if scheme in ("fp8", "nf4"):
        assert off.max() < EXACT
    else:
        assert 0 < off.mean() < INPUTS_ROUNDED


class Toy(nn.Module):
    """One layer for each thing that a model's code may do with it."""

    all_tied_weights_keys: ClassVar[dict[str, str]] = {
        "tied.weight": "lends.weight",
        "head.weight": "embed.weight",
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.called, self.read, self.tied, self.lends, self.unused = (nn.Linear(8, 8) for _ in range(5))
        self.precise = nn.Linear(8, 8, dtype=torch.float64)
        self.head = nn.Linear(8, 10, bias=False)
        self.bilinear = nn.Bilinear(8, 8, 8)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _get_dtype_plan(self, _dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {"wide": torch.float32}

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x) + x @ self.read.weight + self.tied(x) + self.lends(x)
        x = x + self.precise(x.double()).to(x.dtype) + self.bilinear(x, x)
        logits: Tensor = self.head(x)
        return logits


def toy(wants: Wants) -> tuple[Toy, set[str]]:
    with torch.device("meta"):
        model = Toy()
        linears = Linears(model)
        assert model(torch.empty(1, 5, 8)).shape == (1, 5, 10)
    used = set(model.modules()) - {model.unused}
    taken = linears.take(model, used, wants)
    if wants.formats.name != "none":
        name_others(model, used, taken, wants.formats.name)
    return model, taken


def test_only_what_is_called_becomes_ours(capsys: pytest.CaptureFixture[str]) -> None:
    wants = Wants(torch.float32, Rounding("int8"))
    model, taken = toy(wants)
    assert taken == {"called.weight", "called.bias", "head.weight"}
    assert {part.name for part in wants.parts()} == {"called.weight", "called.bias", "embed.weight"}
    stay = ", ".join(f"{name}.weight" for name in ("read", "tied", "lends", "precise", "bilinear"))
    said = capsys.readouterr().err
    assert said.startswith("tern: --quantization int8 leaves as they are, as the model's code does not only")
    assert said.endswith(f": {stay}\n")
    assert type(model.read) is type(model.unused) is nn.Linear


class Neighbours(Toy):
    """Four that are given the same tensor, which is written to in between."""

    all_tied_weights_keys: ClassVar[dict[str, str]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.called(x) * self.read(x)
        logits: Tensor = self.head(y * self.tied(x.mul_(2)) * self.lends(x))
        return logits


def test_neighbours_that_are_given_the_same_are_one_matrix() -> None:
    wants = Wants(torch.float32)
    with torch.device("meta"):
        model = Neighbours()
        linears = Linears(model)
        model(torch.empty(1, 5, 8))
    linears.take(model, set(model.modules()), wants)
    torch.manual_seed(2)
    weights = {part: torch.randn(part.shape) for part in wants.parts()}
    load(wants, weights.__getitem__, quiet)
    linears.loaded()
    ours: Any = [getattr(model, name).product for name in ("called", "read", "tied", "lends")]
    assert ours[0] is ours[1] is not ours[2] is ours[3]
    x = torch.randn(1, 3, 8)

    def product(name: str, x: Tensor) -> Tensor:
        weight, bias = (
            next(w for part, w in weights.items() if part.name == f"{name}.{leaf}")
            for leaf in ("weight", "bias")
        )
        return x @ weight.t() + bias

    for name in ("called", "read", "read", "tied", "lends", "called"):  # in any order, and again
        torch.testing.assert_close(getattr(model, name)(x), product(name, x))
    with pytest.raises(AttributeError):
        model.called.weight  # noqa: B018


def test_nothing_is_said_where_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    toy(Wants(torch.float32))
    assert not capsys.readouterr().err


def test_a_model_without_such_layers_is_not_quantized() -> None:
    wants = Wants(torch.bfloat16, Rounding("int4"))  # none of them is of this type
    with pytest.raises(StartupError, match=r"--quantization int4: .* no linear layer that"):
        toy(wants)


# A wrong scale, zero point or order of codes is worth 0.5 and more.
QUANTIZED: dict[str, tuple[str, Quantize, dict[str, Any], float]] = {
    "fp8 in blocks": ("olmo2", in_blocks(128), BLOCKS, EXACT),
    "awq, inputs rounded": ("stablelm", *served("awq"), INPUTS_ROUNDED),
    "gptq of 8 bits, inputs rounded": ("olmo2", *served("gptq, 8 bits"), INPUTS_ROUNDED),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_checkpoints_are_equal_to_the_dequantized_model(case: str, tmp_path: Path) -> None:
    model_type, quantize, config, tolerance = QUANTIZED[case]
    twins = write_twins(tmp_path, quantize, config, model_type, intermediate_size=128)
    assert mean_difference(twins, tmp_path) < tolerance


def test_experts_of_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    model_type, changes = UNDECLARED["olmoe"]
    twins = write_twins(tmp_path, in_blocks(128), BLOCKS, model_type, **changes)
    with pytest.raises(StartupError, match=r"experts.0.*: quantized experts are not supported"):
        logprobs(twins.quantized, tmp_path)
