"""The worker's own runner and models over the Triton kernels, beside the same on torch.

Where Triton interprets, its device is the CPU; on a GPU it is the GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import StartupError
from protocol.sampling import SamplingParams
from tests.worker.driver import Driver, quiet, worker_config, write_config
from worker import devices
from worker.kernels.triton.device import TritonKernels
from worker.runner import TorchRunner

SMALL = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 96}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 96,
        "tie_word_embeddings": True,
    },
}


def serve(folder: Path, family: str) -> list[Any]:
    """Two prompts that start in different steps, one of them in chunks: tokens, and log-probabilities."""
    model = write_config(folder / family, **{**SMALL, **FAMILIES[family]})
    config = worker_config(model, folder, load_format="dummy", num_kv_blocks=40, max_num_seqs=2)
    driver = Driver(TorchRunner(config, quiet))
    sampling = SamplingParams(temperature=0, logprobs=3)
    first, second = driver.add(list(range(5, 14)), sampling), driver.add([1, 60, 3], sampling)
    driver.step({first: 5})
    driver.step({first: 4, second: 3})
    driver.run([first, second], 2)
    return [[seq.outputs, seq.logprobs] for seq in (first, second)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers_as_on_torch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    expected = serve(tmp_path, family)
    monkeypatch.setattr(devices, "kernels_of", lambda _: TritonKernels(device))
    found = serve(tmp_path, family)
    for (tokens, logprobs), (right_tokens, right_logprobs) in zip(found, expected, strict=True):
        assert tokens == right_tokens
        for ours, theirs in zip(logprobs, right_logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_what_cannot_be_served_on_a_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(devices, "kernels_of", lambda _: TritonKernels(device))
    model = write_config(tmp_path / "model", quantization_config={"quant_method": "fp8"})
    with pytest.raises(StartupError, match="quantized weights are served on the CPU only"):
        TorchRunner(worker_config(model, tmp_path, load_format="dummy"), quiet)
