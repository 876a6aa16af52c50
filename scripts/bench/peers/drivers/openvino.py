"""OpenVINO GenAI, continuous batching.

The model is converted once per kind of weights and kept beside the checkpoint: bf16 computes from 16-bit
weights with a bfloat16 hint; int8 and int4 are OpenVINO's own compression (it quantizes activations itself).
"""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .answering import Prompts, answer, check_lengths, claim_stdout

WEIGHTS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
"""Kind → `--weight-format` of the converter, which knows no bf16."""


def main(folder: str, threads: str, kind: str) -> None:
    descriptor = claim_stdout()
    converted = convert(Path(folder), kind)
    openvino: Any = import_module("openvino")
    genai: Any = import_module("openvino_genai")
    schedule = genai.SchedulerConfig()
    schedule.cache_size = 2  # GiB
    schedule.enable_prefix_caching = False
    properties: dict[str, int | str] = {"INFERENCE_NUM_THREADS": int(threads)}
    if kind == "bf16":
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    engine = genai.ContinuousBatchingPipeline(str(converted), schedule, "CPU", properties)

    def generate(prompts: Prompts, num_tokens: int) -> None:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = num_tokens
        settings.ignore_eos = True
        settings.do_sample = False
        numpy: Any = import_module("numpy")
        inputs = [openvino.Tensor(numpy.array([ids], dtype=numpy.int64)) for ids in prompts]
        answers = engine.generate(inputs, [settings] * len(prompts))
        check_lengths([len(one.m_generation_ids[0]) for one in answers], prompts, num_tokens)

    answer({"generate": generate}, descriptor)


def convert(folder: Path, kind: str) -> Path:
    """The converted model's folder; made if it is not there."""
    converted = folder.with_name(f"{folder.name}-openvino-{kind}")
    if not converted.exists():
        unfinished = converted.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        program = str(Path(sys.executable).with_name("optimum-cli"))
        command = [program, "export", "openvino", "--model", str(folder)]
        command += ["--task", "text-generation-with-past", "--weight-format", WEIGHTS[kind], str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(converted)
    return converted


if __name__ == "__main__":
    main(*sys.argv[1:])
