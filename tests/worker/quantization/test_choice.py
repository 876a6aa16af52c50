"""Which quantizations are told apart, and what is refused before weights are read."""

from typing import Any

import pytest

from protocol.errors import StartupError
from protocol.options import ModelOptions
from tests.worker.quantization.checkpoints import no_cache
from worker.quantization.choice import formats_for

GPTQ = {"quant_method": "gptq", "bits": 4}
ROUND = {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}
AWQ = {"quant_method": "awq", "bits": 4}


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        ({"quant_method": "bitsandbytes"}, {}, "quantized by 'bitsandbytes', which is not supported"),
        ({"bits": 4}, {}, "quantized by 'unnamed'"),
        (
            GPTQ,
            {"quantization": "int8"},
            r"--quantization int8: the checkpoint is quantized already \(gptq\)",
        ),
        (GPTQ, {"load_format": "dummy"}, "--load-format dummy makes unquantized weights"),
        ({"quant_method": "gptq"}, {}, r"quantization_config \(gptq\): Object missing required field `bits`"),
        (None, {"quantization": "nf4", "quantization_group": 64}, "group 64 is of --quantization int4"),
        ({**GPTQ, "bits": 3}, {}, "GPTQ weights of 3 bits are not supported"),
        ({**GPTQ, "group_size": 48}, {}, "GPTQ weights with group_size 48 are not supported"),
        ({**GPTQ, "checkpoint_format": "marlin"}, {}, "of the format 'marlin' are not supported"),
        ({**GPTQ, "is_marlin_format": True}, {}, "of the format 'marlin' are not supported"),
        ({**GPTQ, "pack_dtype": "int16"}, {}, "pack_dtype 'int16' is not supported"),
        ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, {}, "gives '.*down.*' other settings"),
        ({**AWQ, "version": "gemv"}, {}, "version 'gemv' and 4 bits are not supported"),
        ({**AWQ, "bits": 8}, {}, "version 'gemm' and 8 bits are not supported"),
        ({**AWQ, "zero_point": False}, {}, "zero_point = False is not supported"),
        ({**AWQ, "checkpoint_format": "gemv_fast"}, {}, "version 'gemv_fast' and 4 bits are not supported"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, {}, "quant_algo 'NVFP4' is not supported"),
        ({**ROUND, "packing_format": "auto_round:marlin"}, {}, "packing_format 'auto_round:marlin' is not"),
        ({**ROUND, "data_type": "mx_fp"}, {}, "data_type 'mx_fp' is not supported"),
        ({**ROUND, "sym": False}, {}, "sym = False is supported in the packing of AWQ only"),
        ({**ROUND, "extra_config": {"m.down": {"bits": 8}}}, {}, "gives 'm.down' bits = 8; .* must have 4"),
        ({**ROUND, "bits": 2}, {}, "weights of 2 bits are not supported"),
    ],
)
def test_refusals(found: dict[str, Any] | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        formats_for(found, {}, ModelOptions(**options), no_cache)


def test_auto_round_is_stored_as_gptq_or_awq() -> None:
    left_out = {"lm_head": {"bits": 16, "data_type": "float"}}
    found = formats_for({**ROUND, "extra_config": left_out}, {}, ModelOptions(), no_cache)
    assert found == formats_for(GPTQ, {}, ModelOptions(), no_cache)
    as_awq = {**ROUND, "packing_format": "auto_round:auto_awq", "sym": False}
    assert formats_for(as_awq, {}, ModelOptions(), no_cache) == formats_for(AWQ, {}, ModelOptions(), no_cache)


def test_names_tell_ways_apart() -> None:
    """They are part of the model's fingerprint."""
    ways = [
        formats_for(None, {}, ModelOptions(), no_cache),
        formats_for(GPTQ, {}, ModelOptions(), no_cache),
        formats_for(None, {}, ModelOptions(quantization="int4"), no_cache),
        formats_for(None, {}, ModelOptions(quantization="int4", quantize_head=False), no_cache),
        formats_for(None, {}, ModelOptions(quantization="int4", quantization_group=128), no_cache),
    ]
    assert [way.name for way in ways] == [
        "none", "gptq", "int4", "int4, head as it is", "int4, groups of 128",
    ]  # fmt: skip
