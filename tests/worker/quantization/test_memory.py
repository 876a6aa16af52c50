"""Loading takes the quantized model and one layer more, as the kernel counts memory; and says so before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from protocol.errors import OutOfMemory
from tests.worker.driver import TINY, quiet, worker_config
from worker import runner
from worker.runner import TorchRunner

SIZE, INNER, LAYERS = 512, 2048, 9
CONFIG = {
    **TINY,
    "dtype": "bfloat16",
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": True,
}
MEASURE = """
import json, os, sys
from pathlib import Path
from tests.worker.driver import quiet
from tests.worker.native import kernels
from protocol.options import ModelOptions
from worker.checkpoint import Checkpoint
from worker.models.registry import build
from worker.parallel import Group
from worker.weight_image import WeightImage
from worker.weights import load, reader

def memory(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024

checkpoint = Checkpoint(Path(sys.argv[1]))
in_c = kernels() if sys.argv[2] == "int8" else None
image = None if in_c is None else WeightImage.open(-1, os.fstat, "", in_c)
model, wants = build(checkpoint, ModelOptions(quantization=sys.argv[2]), Group(), in_c, image=image)
read = reader(wants, checkpoint)
promised, working = wants.num_bytes(), wants.working_bytes(checkpoint.tensors)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = memory("VmRSS")
load(wants, read, quiet, checkpoint.let_go)
if image is not None:
    image.finish()
print(json.dumps([promised, working, memory("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """71 MB of bfloat16."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_bytes(msgspec.json.encode(CONFIG))
    tensors = {"model.embed_tokens.weight": torch.randn(96, SIZE), "model.norm.weight": torch.ones(SIZE)}
    shapes = {
        "self_attn.q_proj": (SIZE, SIZE),
        "self_attn.k_proj": (SIZE // 2, SIZE),
        "self_attn.v_proj": (SIZE // 2, SIZE),
        "self_attn.o_proj": (SIZE, SIZE),
        "mlp.gate_proj": (INNER, SIZE),
        "mlp.up_proj": (INNER, SIZE),
        "mlp.down_proj": (SIZE, INNER),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape) / 30
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(SIZE)
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.timeout(600)  # a few seconds of work
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_peak_is_the_quantized_model_and_one_layer(scheme: str, checkpoint: Path) -> None:
    """24 MB for temporaries: a piece of 2^18 weights, in float32, a few times, and what malloc keeps.

    int8 for the kernels in C, in memory that outlives the worker; int4 for torch's.
    """
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(checkpoint), scheme],
        capture_output=True,
        check=True,
        # What is freed goes back at once; and threads would spin where others want to compute.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"},
    )
    promised, working, peak = json.loads(ended.stdout)
    stored = (checkpoint / "model.safetensors").stat().st_size
    assert promised < stored * {"int8": 0.52, "int4": 0.34}[scheme]
    assert working == 2 * 2 * INNER * SIZE  # gate and up, read together
    assert promised * 0.9 < peak < promised + 2 * working + (24 << 20) < stored


def test_the_refusal_names_numbers_and_flags(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available_memory", lambda: 26 << 20)
    message = r"the weights \(int8\) take 3\d MiB, and loading them 4 MiB more, but 26 MiB are available"
    with pytest.raises(OutOfMemory, match=message) as error:
        TorchRunner(worker_config(checkpoint, tmp_path, quantization="int8"), quiet)
    assert "--quantization int4" in error.value.hint
