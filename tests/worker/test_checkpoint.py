"""Reading checkpoints: what is refused, and that the message says what is wrong."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from protocol.control import Failed
from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.worker.core import WorkerProcess
from tests.worker.driver import quiet, worker_config, write_config
from worker import checksums
from worker.checkpoint import Checkpoint, TensorPart
from worker.models.registry import build
from worker.parallel import Group
from worker.runner import TorchRunner
from worker.weights import load, random_part, reader


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Random weights of the right names and shapes."""
    _, wants = build(Checkpoint(folder, with_weights=False), ModelOptions(dtype="float32"), Group())
    return {part.name: random_part(part).clone() for part in wants.parts()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint."""
    folder = write_config(tmp_path / "model")
    save_file(tensors_of(folder), folder / "model.safetensors")
    return folder


def load_all(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    _, wants = build(checkpoint, ModelOptions(), Group())
    load(wants, reader(wants, checkpoint), quiet)


def test_a_good_one_loads(folder: Path) -> None:
    load_all(folder)


def test_parts_are_read_exactly(folder: Path) -> None:
    expected = tensors_of(folder)["model.layers.1.mlp.up_proj.weight"]
    part = TensorPart("model.layers.1.mlp.up_proj.weight", (96, 64), (5, 3), (7, 50), kept=True)
    for may_map in (True, False):
        found = Checkpoint(folder, may_map=may_map).read(part)
        torch.testing.assert_close(found, expected[5:12, 3:53], atol=0, rtol=0)


def shrink(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = tensors_of(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = msgspec.json.decode(data[8 : 8 + length])
    edit(header)
    encoded = msgspec.json.encode(header)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def a_folder_for_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def index(folder: Path, **weight_map: str) -> None:
    content = msgspec.json.encode({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_bytes(content)


NORM = "model.norm.weight"
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (shrink, r"model.safetensors is truncated: .* ends at byte \d+ of \d+"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or not safetensors"),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not safetensors"),
    "broken header": (
        lambda f: (f / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{"),
        "header of model.safetensors is malformed",
    ),
    "negative offset": (
        lambda f: edit_header(f, lambda h: h[NORM].update(data_offsets=[-256, 0])),
        "offsets -256–0 do not fit",
    ),
    "wrong length": (
        lambda f: edit_header(f, lambda h: h[NORM].update(data_offsets=[0, 8])),
        r"'model.norm.weight' .* offsets 0–8 do not fit \(64,\)",
    ),
    "unknown type": (lambda f: edit_header(f, lambda h: h[NORM].update(dtype="X9")), "unknown type 'X9'"),
    "integers": (
        lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})),
        "'model.norm.weight' is stored as int32",
    ),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(NORM)), "lacks 'model.norm.weight'"),
    "misshapen tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(63)})),
        r"'model.norm.weight' has the shape \[63\]; config.json implies \[64\]",
    ),
    "surplus tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=torch.ones(1))),
        "does not use: 'extra'",
    ),
    "pickle": (only_pickles, "pytorch_model.bin is a pickle"),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "missing shard": (lambda f: index(f, a="gone.safetensors"), "names 'gone.safetensors', which is missing"),
    "shard elsewhere": (lambda f: index(f, a="../model/model.safetensors"), "outside of the checkpoint"),
    "broken promise": (lambda f: index(f, a="model.safetensors"), "promises 'a', but no shard has it"),
    "nested header": (
        lambda f: (f / "model.safetensors").write_bytes(
            (90_000).to_bytes(8, "little") + b'{"a":' + b"[" * 89_995
        ),
        "header of model.safetensors is malformed",
    ),
    "nested config": (
        lambda f: (f / "config.json").write_text('{"a":' + "[" * 90_000),
        "config.json is malf",
    ),
    "a folder for a config": (a_folder_for_a_config, "config.json cannot be read: Is a directory"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is malformed"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case: str, folder: Path) -> None:
    spoil, message = BAD_FILES[case]
    spoil(folder)
    with pytest.raises(StartupError, match=message):
        load_all(folder)


@pytest.mark.parametrize("may_map", [False, True])
def test_a_file_that_shrinks_while_it_is_read(may_map: bool, folder: Path) -> None:
    checkpoint = Checkpoint(folder, may_map=may_map)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(StartupError, match=r"bec[oa]me shorter"):
        checkpoint.read(TensorPart(NORM, (64,), (0,), (64,)))


def list_checksums(folder: Path, *names: str) -> None:
    """As sha256sum writes them."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (folder / checksums.NAME).write_text("\n".join(lines) + "\n")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1000] ^= 4
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_bit_is_noticed_where_checksums_are_listed(rank: int, folder: Path) -> None:
    """By the rank whose share the file is."""
    list_checksums(folder, "config.json", "model.safetensors")
    phases: list[tuple[str, str, float | None]] = []

    def verify() -> None:
        needed = {"model.safetensors"}
        checksums.verify(folder, needed, lambda *phase: phases.append(phase), rank=rank, size=2)

    verify()
    assert phases == [("verifying checksums", ["config.json", "model.safetensors"][rank], 1.0)]
    flip_a_bit(folder)
    load_all(folder)  # nothing else would notice
    if rank == 0:
        verify()
        return
    with pytest.raises(StartupError, match=r"model.safetensors is not what SHA256SUMS says"):
        verify()


def test_a_model_is_not_served_against_its_checksums(folder: Path, tmp_path: Path) -> None:
    list_checksums(folder, "model.safetensors")
    TorchRunner(worker_config(folder, tmp_path), quiet)
    flip_a_bit(folder)
    with pytest.raises(StartupError, match="its SHA-256 differs"):
        TorchRunner(worker_config(folder, tmp_path), quiet)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not list 'model.safetensors'"),
        ("0123  model.safetensors\n", "line 1 of SHA256SUMS is not 64 hexadecimal digits"),
        (f"{'a' * 64}  ./model.safetensors\n", "model.safetensors is not what"),
        (f"{'a' * 64}  gone.bin\n{'a' * 64} *../x\n", "line 2 of SHA256SUMS"),
        ("\udcff", "SHA256SUMS cannot be read"),
    ],
)
def test_bad_checksums(content: str, message: str, folder: Path) -> None:
    (folder / checksums.NAME).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StartupError, match=message):
        checksums.verify(folder, {"model.safetensors"}, quiet)


def test_listed_files_that_are_not_there_do_not_matter(folder: Path) -> None:
    list_checksums(folder, "model.safetensors", "config.json")
    path = folder / checksums.NAME
    path.write_text(path.read_text() + f"{'a' * 64}  original.pth\n")
    checksums.verify(folder, {"model.safetensors"}, quiet)


@pytest.mark.parametrize("spoil", [shrink, only_pickles, flip_a_bit])
def test_a_worker_says_so_once_and_exits_with_78(
    spoil: Callable[[Path], Any], folder: Path, tmp_path: Path
) -> None:
    list_checksums(folder, "model.safetensors")
    spoil(folder)
    process = WorkerProcess(worker_config(folder, tmp_path), environ={})
    try:
        failed = process.next(Failed)
        assert isinstance(failed, Failed)
        assert "model" in failed.message
        assert (failed.code, failed.exit_code) == ("startup_error", 78)
        assert process.wait() == (78, "")
    finally:
        process.close()


def test_a_tied_head_may_be_stored_twice(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", tie_word_embeddings=True)
    save_file({**tensors_of(folder), "lm_head.weight": torch.zeros(96, 64)}, folder / "model.safetensors")
    load_all(folder)


BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "architecture": (
        {"architectures": ["BloomForCausalLM"]},
        "is not one that transformers .* has code for",
    ),
    "no architecture": ({"architectures": []}, "is not one that transformers .* has code for"),
    "own code": ({"auto_map": {"AutoModel": "x.Y"}}, r"auto_map: .* needs its own code \(x.Y\)"),
    "own code of a known name": (
        {"auto_map": {"AutoModelForCausalLM": "x.LlamaForCausalLM"}, "model_type": "bird"},
        "of model_type 'bird' needs its own code",
    ),
    "both directions": ({"is_causal": False}, "looks in both directions"),
    "quantized": ({"quantization_config": {"quant_method": "quanto"}}, "quantized by 'quanto'"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported for Llama"),
    "window": ({"sliding_window": 64}, "sliding_window = 64 is not supported"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    "rope type": ({"rope_scaling": {"type": "ntk", "factor": 2}}, "rope_type 'ntk'.*knows default"),
    "rope without factor": ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
    "rope with more": ({"rope_scaling": {"rope_type": "linear", "factor": 2, "x": 1}}, "unknown field `x`"),
    "rope in part": ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
    "heads": ({"num_key_value_heads": 3}, "4 heads, 3 KV heads"),
    "no size": ({"hidden_size": 0}, "hidden_size"),
    "wrong type": ({"vocab_size": "many"}, "vocab_size"),
    "dtype": ({"dtype": "float64"}, "dtype is 'float64'; Tern computes in float32"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_what_would_change_the_maths_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, message = BAD_CONFIGS[case]
    checkpoint = Checkpoint(write_config(tmp_path / "model", **changes), with_weights=False)
    with pytest.raises(StartupError, match=message):
        build(checkpoint, ModelOptions(), Group())


def test_a_config_without_a_dtype_leaves_it_to_the_tensors(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", dtype=None)
    stored = {name: tensor.bfloat16() for name, tensor in tensors_of(folder).items()}
    save_file(stored, folder / "model.safetensors")
    assert build(Checkpoint(folder), ModelOptions(), Group())[1].dtype == torch.bfloat16
    stored["model.layers.0.mlp.up_proj.qweight"] = stored.pop("model.layers.0.mlp.up_proj.weight")
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(StartupError, match=r"lacks 'model.layers.0.mlp.up_proj.weight'") as caught:
        load_all(folder)
    assert "check `quantization_config`" in caught.value.hint


def test_numbers_that_only_python_writes(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type="nemotron_h", architectures=["NemotronHForCausalLM"])
    document = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b'{"time_step_limit": [0.0, Infinity], ' + document[1:])
    with pytest.raises(StartupError, match="are not declared"):
        build(Checkpoint(folder, with_weights=False), ModelOptions(model_impl="tern"), Group())


def test_own_code_that_is_not_needed_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"AutoConfig": "c.LlamaConfig", "AutoModelForCausalLM": "m.LlamaForCausalLM"}
    folder = write_config(tmp_path / "model", auto_map=named, model_type="llama")
    model, _ = build(Checkpoint(folder, with_weights=False), ModelOptions(), Group())
    assert model.num_layers == 2
    assert "m.LlamaForCausalLM in the checkpoint is not run" in capsys.readouterr().err


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is not a folder"):
        TorchRunner(worker_config(tmp_path / "nowhere", tmp_path), quiet)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, None, (2,)), ([2, 3], None, (2, 3)), (2, [4, 5], (4, 5)), (None, None, ()), (None, 7, (7,))],
)
def test_end_of_sequence_ids(config: object, generation: object, expected: object, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", eos_token_id=config)
    (folder / "generation_config.json").write_bytes(msgspec.json.encode({"eos_token_id": generation}))
    assert Checkpoint(folder, with_weights=False).eos_token_ids() == expected


def test_fingerprint_follows_config_and_headers(folder: Path) -> None:
    before = Checkpoint(folder).fingerprint("float32")
    assert Checkpoint(folder).fingerprint("float32") == before
    assert Checkpoint(folder).fingerprint("bfloat16") != before
    edit_tensors(folder, lambda t: t.update({NORM: torch.ones(64, dtype=torch.float16)}))
    assert Checkpoint(folder).fingerprint("float32") != before
