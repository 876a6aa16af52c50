"""Adapters in a whole model: a sequence depends on itself and its adapter alone, to the bit; what does not
fit is refused by name before a weight is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.errors import InternalError, StartupError
from protocol.options import ParallelOptions
from protocol.sampling import SamplingParams
from tests.worker.adapters import write_adapter
from tests.worker.driver import Driver, quiet, worker_config, write_config
from worker.failures import RowsFailed
from worker.models.decoder import Decoder
from worker.runner import TorchRunner

PROMPT = [(7 * i * i + 3) % 96 for i in range(45)]
TELLS = SamplingParams(temperature=0, logprobs=8, prompt_logprobs=0)
OUTPUTS = 20
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}  # fmt: skip
MODULES = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in SHAPES.items()}
ATTENTION = {module: shape for module, shape in MODULES.items() if ".self_attn.q" in module}


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[str, ...]:
    """--lora of two."""
    all_of_it = write_adapter(tmp_path / "a", MODULES, seed=1, std=0.2)
    queries = write_adapter(tmp_path / "b", ATTENTION, seed=2, r=16, std=0.2)
    return f"all={all_of_it}", f"queries={queries}"


Make = Callable[..., TorchRunner]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(lora=…): a runner with kernels in C and weights of no checkpoint."""

    def make_(
        *, eager: bool = False, changes: dict[str, object] | None = None, **options: Any
    ) -> TorchRunner:
        model = write_config(tmp_path / "model", **(changes or {}))
        config = worker_config(model, tmp_path, load_format="dummy", **options)
        parallel = ParallelOptions(threads=1, cpu_kernels="native", enforce_eager=eager)
        return TorchRunner(msgspec.structs.replace(config, parallel=parallel), quiet)

    return make_


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8")]
)
def test_company_chunks_hits_and_recomputation_change_no_bit(
    make: Make, adapters: tuple[str, ...], dtype: str, quantization: str
) -> None:
    driver = Driver(make(lora=adapters, dtype=dtype, quantization=quantization))
    alone = driver.add(PROMPT, TELLS, adapter="all")
    driver.run([alone], OUTPUTS)
    plain = driver.add(PROMPT, TELLS)
    driver.run([plain], OUTPUTS)
    assert plain.logprobs[0] != alone.logprobs[0]
    driver.drop(alone, keep_blocks=True)
    assert driver.runner.kernels is not None
    driver.runner.kernels.set_threads(3)

    chunked = driver.add(PROMPT, TELLS, adapter="all")
    driver.run([chunked], OUTPUTS, chunk=7)
    assert (chunked.outputs, chunked.logprobs) == (alone.outputs, alone.logprobs)
    assert chunked.prompt_logprobs == alone.prompt_logprobs

    names = ("", "queries", "all", "queries", "", "all")
    company = [driver.add(PROMPT[: 3 + 5 * i], adapter=name) for i, name in enumerate(names)]
    driver.run(company, 3)
    crowded = driver.add(PROMPT, TELLS, adapter="all")
    driver.run([*company, crowded], OUTPUTS)
    assert (crowded.outputs, crowded.logprobs) == (alone.outputs, alone.logprobs)
    assert crowded.prompt_logprobs == alone.prompt_logprobs

    hit = driver.add(PROMPT, TELLS, shared=[alone.tables[0][:8]], adapter="all")
    driver.run([hit], OUTPUTS)
    assert (hit.outputs, hit.logprobs) == (alone.outputs, alone.logprobs)

    for known in (1, 11):
        resumed = driver.add(PROMPT, TELLS, outputs=alone.outputs[:known], adapter="all")
        driver.run([resumed, *company], OUTPUTS + 3, chunk=13)
        assert resumed.outputs[:OUTPUTS] == alone.outputs
        assert resumed.logprobs[: OUTPUTS - known] == alone.logprobs[known:]
        driver.drop(resumed)
    driver.runner.kernels.set_threads(1)


def test_a_tape_serves_whatever_adapters_its_rows_have(make: Make, adapters: tuple[str, ...]) -> None:
    """Recorded without any, played with all, as computed without tapes."""
    answers = []
    for eager in (False, True):
        driver = Driver(make(lora=adapters, eager=eager))
        found = []
        for name in ("", "all", "queries", ""):
            seq = driver.add(PROMPT[:9], TELLS, adapter=name)
            driver.run([seq], 6)
            found.append((seq.outputs, seq.logprobs))
            driver.drop(seq)
        model = driver.runner.served.model
        assert isinstance(model, Decoder)
        assert (model.tapes is not None and 1 in model.tapes.rows) == (not eager)
        answers.append(found)
    assert answers[0] == answers[1]
    assert len({str(outputs) for outputs, _ in answers[0]}) == 3


def test_memory_of_adapters_is_counted(make: Make, adapters: tuple[str, ...]) -> None:
    without, with_them = make(dtype="bfloat16"), make(dtype="bfloat16", lora=adapters)
    numbers = sum(4 * (n + k) for n, k in MODULES.values()) + sum(16 * (n + k) for n, k in ATTENTION.values())
    assert with_them.facts.weights_bytes - without.facts.weights_bytes == 2 * numbers
    assert (without.facts.adapters, with_them.facts.adapters) == ((), ("all", "queries"))
    assert without.model_fingerprint != with_them.model_fingerprint


def test_without_adapters_matrices_are_as_they_were(make: Make, adapters: tuple[str, ...]) -> None:
    def kinds(runner: TorchRunner) -> set[str]:
        model = runner.served.model
        assert isinstance(model, Decoder)
        return {type(layer.mlp.down_proj.weight.matrix).__name__ for layer in model.layers}  # type: ignore[attr-defined]

    assert kinds(make()) == kinds(make(lora=adapters[1:])) == {"NativeMatrix"}
    assert kinds(make(lora=adapters)) == {"AdaptedMatrix"}


def test_a_plan_that_names_an_unknown_adapter_breaks_the_rules(make: Make, adapters: tuple[str, ...]) -> None:
    driver = Driver(make(lora=adapters))
    with pytest.raises(RowsFailed) as caught:
        driver.run([driver.add(PROMPT, adapter="other")], 1)
    assert isinstance(caught.value.__cause__, InternalError)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "dora": ({"use_dora": True}, "use_dora = True is not supported"),
    "bias": ({"bias": "lora_only"}, "bias = 'lora_only' is not supported; it must be 'none'"),
    "lora bias": ({"lora_bias": True}, "lora_bias = True is not supported"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save = \\['lm_head'\\] is not supported"),
    "parameters": ({"target_parameters": ["x"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    "activated": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    "copies": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "has changed the model itself, too"),
    "another kind": ({"peft_type": "IA3"}, "peft_type = 'IA3'; only LORA is supported"),
    "what is to come": ({"use_quantum": True}, "use_quantum = True is not supported"),
    "another rank": ({"r": 8}, "lora_A.weight' has the rank 4; adapter_config.json says 8"),
    "a wrong type": ({"lora_alpha": "much"}, "adapter_config.json is malformed"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_settings_that_are_not_computed_are_refused_by_name(make: Make, tmp_path: Path, what: str) -> None:
    config, said = CONFIGS[what]
    folder = write_adapter(tmp_path / "x", ATTENTION)
    written = msgspec.json.decode((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode({**written, **config}))
    with pytest.raises(StartupError, match=f"^--lora x: .*{said}") as caught:
        make(lora=(f"x={folder}",))
    assert caught.value.hint


def test_settings_without_effect_are_accepted(make: Make, tmp_path: Path) -> None:
    """As PEFT writes them."""
    folder = write_adapter(
        tmp_path / "x", ATTENTION, base_model_name_or_path="org/base", task_type="CAUSAL_LM",
        inference_mode=True, lora_dropout=0.1, megatron_core="megatron.core", target_modules=["q_proj"],
        use_dora=False, modules_to_save=None, init_lora_weights=True, fan_in_fan_out=False,
        qalora_group_size=16, peft_version="0.18.0", loftq_config={}, layers_to_transform=[0],
    )  # fmt: skip
    assert make(lora=(f"x={folder}",)).facts.adapters == ("x",)


def _renamed(new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    old = "model.layers.0.self_attn.q_proj"
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "no such layer": (
        _renamed("model.layers.7.self_attn.q_proj"),
        "7.self_attn.q_proj' is none of this model",
    ),
    "the head": (_renamed("lm_head"), "'lm_head' is none of this model's linear layers.*nor an output head"),
    "an expert": (_renamed("model.layers.0.mlp.experts.3.up_proj"), "is an expert, which adapters cannot"),
    "an embedding": (
        lambda tensors: {**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(1)},
        "lora_embedding_A' is neither the A nor the B",
    ),
    "a magnitude": (
        lambda tensors: {**tensors, Q.replace("lora_A", "lora_magnitude_vector"): torch.ones(1)},
        "lora_magnitude_vector.weight' is neither the A nor the B",
    ),
    "half of it": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != Q},
        "q_proj' has no lora_A",
    ),
    "nothing": (lambda tensors: {}, "it has no tensors"),
    "another model's": (
        lambda tensors: {**tensors, Q: torch.ones(4, 32)},
        r"q_proj.lora_A.weight' has the shape \[4, 32\]; this model needs \[4, 64\]",
    ),
    "a vector": (lambda tensors: {**tensors, Q: torch.ones(64)}, r"has the shape \[64\]"),
    "integers": (
        lambda tensors: {**tensors, Q: torch.ones(4, 64, dtype=torch.int8)},
        "is stored as int8",
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(make: Make, tmp_path: Path, what: str) -> None:
    change, said = TENSORS[what]
    folder = write_adapter(tmp_path / "x", ATTENTION)
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(StartupError, match=f"^--lora x: .*{said}") as caught:
        make(lora=(f"x={folder}",))
    assert caught.value.hint


def test_experts_and_other_peoples_code_are_refused(
    make: Make, tmp_path: Path, adapters: tuple[str, ...]
) -> None:
    with pytest.raises(StartupError, match="in transformers' own code is served without adapters"):
        make(lora=adapters, model_impl="transformers")
    experts = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
    there = {"model.layers.0.block_sparse_moe.experts.1.w1": (96, 64)}
    folder = write_adapter(tmp_path / "x", there)
    with pytest.raises(StartupError, match=r"experts.1.w1' is an expert"):
        make(lora=(f"x={folder}",), changes=experts)
    runner = make(lora=adapters[1:], changes=experts)  # attention is as in any other model
    driver = Driver(runner)
    answers = [driver.add(PROMPT, adapter=name) for name in ("", "queries")]
    driver.run(answers, 8)
    assert answers[0].outputs != answers[1].outputs
