"""Played steps compute what steps called from Python compute, to the bit; what cannot be played is not."""

from pathlib import Path

import msgspec
import pytest

from protocol.options import ParallelOptions
from protocol.sampling import SamplingParams
from tests.worker.driver import Driver, Resident, quiet, worker_config, write_config
from worker.layers import tape
from worker.models.decoder import Decoder
from worker.runner import TorchRunner

TELLS = SamplingParams(temperature=0, logprobs=4)
WINDOW = 8
PLAYED: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "num_attention_heads": 6},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": WINDOW},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
NOT_PLAYED: dict[str, dict[str, object]] = {
    "experts": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "heads that C does not attend to": {"head_dim": 12},
}


def driver(folder: Path, *, cpu_kernels: str = "native", eager: bool = False, **options: object) -> Driver:
    config = worker_config(folder / "model", folder, load_format="dummy", **options)  # type: ignore[arg-type]
    parallel = msgspec.convert(
        {"threads": 1, "cpu_kernels": cpu_kernels, "enforce_eager": eager}, ParallelOptions
    )
    return Driver(TorchRunner(msgspec.structs.replace(config, parallel=parallel), quiet))


def rows_played(driver: Driver) -> list[int]:
    assert isinstance(driver.runner.served.model, Decoder)
    tapes = driver.runner.served.model.tapes
    return [] if tapes is None else tapes.rows


def story(driver: Driver) -> list[tuple[list[int], list[dict[int, float]]]]:
    """Sequences come and go, chunks lie between steps of one to four rows, and the worker starts over."""
    told: list[Resident] = []

    def come(seed: int, length: int) -> Resident:
        seq = driver.add([(seed * i * i + 3) % 96 for i in range(1, length + 1)], TELLS)
        told.append(seq)
        return seq

    first = come(7, 5)
    driver.run([first], 6)
    others = [come(11 + i, 3 + 4 * i) for i in range(3)]
    driver.run([first, *others], 9, chunk=4)
    driver.run([first, *others], 14)
    driver.drop(others[1])
    driver.run([first, others[0], others[2]], 2 * WINDOW)
    driver.run([others[2]], 3 * WINDOW)
    for seq in (first, others[0], others[2]):
        driver.drop(seq)
    last = [come(31, 20), come(37, 2)]
    driver.run(last, 12)
    return [(seq.outputs, seq.logprobs) for seq in told]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", PLAYED)
def test_a_played_step_is_the_same_to_the_bit(family: str, dtype: str, tmp_path: Path) -> None:
    write_config(tmp_path / "model", **PLAYED[family])
    played = driver(tmp_path, dtype=dtype)
    assert story(played) == story(driver(tmp_path, dtype=dtype, eager=True))
    assert {1, 2, 3, 4} <= set(rows_played(played))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights_are_played(quantization: str, tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    played = driver(tmp_path, quantization=quantization)
    assert story(played) == story(driver(tmp_path, quantization=quantization, eager=True))
    assert rows_played(played)


@pytest.mark.parametrize("reason", NOT_PLAYED)
def test_what_torch_computes_is_never_left_out(reason: str, tmp_path: Path) -> None:
    write_config(tmp_path / "model", **NOT_PLAYED[reason])
    recorded = driver(tmp_path)
    assert story(recorded) == story(driver(tmp_path, eager=True))
    assert not rows_played(recorded)


def test_without_kernels_in_c_nothing_is_played(tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    assert not rows_played(driver(tmp_path, cpu_kernels="torch"))


def test_recording_does_not_need_torchs_compiler() -> None:
    """What torch wraps imports it at the first call: a second of every start."""
    dispatch: object = tape._Recording.__torch_dispatch__
    assert not hasattr(dispatch, "__wrapped__")


def test_tapes_are_kept_only_as_far_as_memory_was_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "model")
    monkeypatch.setattr(tape, "MOST_BYTES", 12_000)
    recorded = driver(tmp_path)
    assert story(recorded) == story(driver(tmp_path, eager=True))
    rows = rows_played(recorded)
    assert 1 in rows
    assert 4 not in rows
