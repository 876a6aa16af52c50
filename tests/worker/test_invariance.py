"""With the kernels in C a sequence's numbers depend on itself alone, to the bit, in a whole model."""

from pathlib import Path

import msgspec
import pytest

from protocol.options import ParallelOptions
from protocol.sampling import SamplingParams
from tests.worker.driver import Driver, quiet, worker_config, write_config
from worker.runner import TorchRunner

PROMPT = [(7 * i * i + 3) % 96 for i in range(45)]
TELLS = SamplingParams(temperature=0, logprobs=8, prompt_logprobs=0)
OUTPUTS = 24


FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "num_attention_heads": 6},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
    },
}
CASES = [(family, dtype, "none", "auto") for family in FAMILIES for dtype in ("float32", "bfloat16")]
CASES += [("llama", "bfloat16", scheme, "auto") for scheme in ("int8", "int4", "nf4", "fp8")]
CASES += [("qwen3", dtype, "none", "int8") for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(("family", "dtype", "quantization", "kv_cache_dtype"), CASES)
def test_company_chunks_hits_and_recomputation_change_no_bit(
    family: str, dtype: str, quantization: str, kv_cache_dtype: str, tmp_path: Path
) -> None:
    model = write_config(tmp_path / "model", **FAMILIES[family])
    config = worker_config(
        model,
        tmp_path,
        load_format="dummy",
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
    )
    parallel = ParallelOptions(threads=1, cpu_kernels="native")
    driver = Driver(TorchRunner(msgspec.structs.replace(config, parallel=parallel), quiet))
    alone = driver.add(PROMPT, TELLS)
    driver.run([alone], OUTPUTS)
    driver.drop(alone, keep_blocks=True)
    assert driver.runner.kernels is not None
    driver.runner.kernels.set_threads(3)

    chunked = driver.add(PROMPT, TELLS)
    driver.run([chunked], OUTPUTS, chunk=7)
    assert (chunked.outputs, chunked.logprobs) == (alone.outputs, alone.logprobs)
    assert chunked.prompt_logprobs == alone.prompt_logprobs

    company = [driver.add(PROMPT[: 3 + 5 * i], SamplingParams(seed=i)) for i in range(6)]
    driver.run(company, 3)
    crowded = driver.add(PROMPT, TELLS)
    driver.run([*company, crowded], OUTPUTS)
    assert (crowded.outputs, crowded.logprobs) == (alone.outputs, alone.logprobs)
    assert crowded.prompt_logprobs == alone.prompt_logprobs

    hit = driver.add(PROMPT, TELLS, shared=[alone.tables[0][:8]])
    driver.run([hit], OUTPUTS)
    assert (hit.outputs, hit.logprobs) == (alone.outputs, alone.logprobs)

    for known in (1, 11, 20):
        resumed = driver.add(PROMPT, TELLS, outputs=alone.outputs[:known])
        driver.run([resumed, *company], OUTPUTS + 3, chunk=13)
        assert resumed.outputs[:OUTPUTS] == alone.outputs
        assert resumed.logprobs[: OUTPUTS - known] == alone.logprobs[known:]
        driver.drop(resumed)
    driver.runner.kernels.set_threads(1)
