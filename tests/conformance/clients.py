"""The real clients: which program asks with which packages, and where these are installed.

Each has an environment of its own in `.clients`, because they want different versions of the same packages;
`scripts/clients` makes it. What the tests' own environment has (`packages` empty) is asked from there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENTS = ROOT / ".clients"
PAGE = ROOT / "docs" / "clients.md"
DEADLINE_S = 120


class Client(NamedTuple):
    """One row of docs/clients.md."""

    name: str
    """Of the package that people know."""
    program: str
    """A file in `programs`; its suffix says who runs it, Python or Node."""
    packages: tuple[str, ...] = ()
    """What to install, each pinned: `name==1.2.3`, `name@1.2.3` for Node."""
    light: bool = True
    """Whether CI installs and asks it."""

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / Path(self.program).stem

    @property
    def is_node(self) -> bool:
        return self.program.endswith(".mjs")

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python") if self.packages else sys.executable

    def missing(self) -> str:
        """Why it cannot be asked here; empty if it can."""
        if self.is_node and shutil.which("node") is None:
            return "there is no node"
        stamp = self.folder / "installed.json"
        if self.packages and not (stamp.exists() and json.loads(stamp.read_text()) == list(self.packages)):
            return "not installed; run scripts/clients" + ("" if self.light else " --check")
        return ""

    def install(self) -> None:
        """Make its environment anew, unless it is there. Raises CalledProcessError, FileNotFoundError."""
        if not self.missing():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.is_node:
            (self.folder / "package.json").write_text("{}")
            command = ["npm", "install", "--no-audit", "--no-fund", "--silent", *self.packages]
            subprocess.run(command, cwd=self.folder, check=True)
        else:
            subprocess.run(
                ["uv", "venv", "--quiet", "--clear", "--python", sys.executable, self.folder], check=True
            )
            command = ["uv", "pip", "install", "--quiet", "--python", self.python, *self.packages]
            subprocess.run(command, check=True)
        (self.folder / "installed.json").write_text(json.dumps(self.packages))

    def ask(self, url: str, model: str) -> list[str]:
        """Run the program: the calls that it made. Raises AssertionError with what it wrote."""
        program = PROGRAMS / self.program
        if self.is_node:  # which looks for packages beside the program
            for file in (program, PROGRAMS / "calls.mjs"):
                shutil.copy(file, self.folder)
            command = ["node", str(self.folder / self.program)]
        else:
            command = [self.python, str(program)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [*command, url, model],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"^ok (.+)$", done.stdout, re.M)

    def versions(self) -> str:
        """For people."""
        pins = self.packages or tuple(f"{name}=={version(name)}" for name in self.name.split(", "))
        return ", ".join(re.sub(r"(\[.*\])?(==|(?<=.)@(?=\d))", " ", pin) for pin in pins)


CLIENTS = (
    Client("openai", "openai_python.py"),
    Client("anthropic", "anthropic_python.py"),
    Client("huggingface_hub", "hugging_face.py"),
    Client("langchain-openai", "langchain.py", ("langchain-openai==1.7.4", "openai==3.57.0")),
    Client("pydantic-ai", "pydantic_ai_python.py", ("pydantic-ai-slim[openai]==2.68.0", "openai==3.57.0")),
    Client("instructor", "instructor_python.py", ("instructor==1.17.0", "openai==3.3.0")),
    Client("litellm", "litellm_python.py", ("litellm==1.110.2", "openai==3.57.0"), light=False),
    Client(
        "llama-index",
        "llama_index_python.py",
        ("llama-index-llms-openai-like==0.8.1", "openai==2.54.0"),
        light=False,
    ),
    Client("lm-eval", "lm_eval_python.py", ("lm_eval[api]==0.4.13",), light=False),
    Client("openai (Node)", "openai_node.mjs", ("openai@6.49.0", "zod@4.6.7")),
    Client(
        "Vercel AI SDK (Node)",
        "ai_sdk.mjs",
        ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"),
    ),
)


def install(*, everything: bool) -> Iterator[str]:
    """Make the environments that are missing; the names of those that could not be made."""
    for client in CLIENTS:
        if client.light or everything:
            try:
                client.install()
            except (subprocess.CalledProcessError, FileNotFoundError) as error:
                print(f"clients: {client.name}: {error}", file=sys.stderr)
                yield client.name
