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
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENTS = ROOT / ".clients"
PAGE = ROOT / "docs" / "clients.md"
DEADLINE_S = 120
HEAVY_DEADLINE_S = 900


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
    beside: tuple[str, ...] = ()
    """More of them, without what they need (torch, transformers): the tests' own environment has it."""

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
        wanted = [*self.packages, *self.beside]
        if wanted and not (stamp.exists() and json.loads(stamp.read_text()) == wanted):
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
            command = ["uv", "pip", "install", "--quiet", "--python", self.python]
            subprocess.run([*command, *self.packages], check=True)
            if self.beside:
                subprocess.run([*command, "--no-deps", *self.beside], check=True)
                self._see_the_tests_packages()
        (self.folder / "installed.json").write_text(json.dumps([*self.packages, *self.beside]))

    def _see_the_tests_packages(self) -> None:
        """Those of the tests' environment, where its own lacks them."""
        own = sysconfig.get_path("purelib", vars={"base": str(self.folder)})
        theirs = [path for path in sys.path if path.endswith("site-packages")]
        (Path(own) / "tests.pth").write_text("".join(f"{path}\n" for path in theirs))

    def ask(self, url: str, model: str) -> "Said":
        """Run the program. Raises AssertionError with what it wrote, if it fails."""
        program = PROGRAMS / self.program
        if self.is_node:  # which looks for packages beside the program
            for file in (program, PROGRAMS / "calls.mjs"):
                shutil.copy(file, self.folder)
            command = ["node", str(self.folder / self.program)]
        else:
            command = [self.python, "-m", f"{PROGRAMS.name}.{program.stem}"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [*command, url, model],
            cwd=PROGRAMS.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S if self.light else HEAVY_DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        calls, results = (re.findall(rf"^{kind} (.+)$", done.stdout, re.M) for kind in ("ok", "row"))
        return Said(calls, results)

    def versions(self) -> str:
        """For people."""
        pins = self.packages or tuple(f"{name}=={version(name)}" for name in self.name.split(", "))
        return ", ".join(re.sub(r"(\[.*\])?(==|(?<=.)@(?=\d))", " ", pin) for pin in pins)


class Said(NamedTuple):
    """By a program."""

    calls: list[str]
    """That it made."""
    results: list[str]
    """Rows of a table, where it measures something."""


CLIENTS = (
    Client("openai", "openai_python.py"),
    Client("anthropic", "anthropic_python.py"),
    Client("huggingface_hub", "hugging_face.py"),
    Client("langchain-openai", "langchain.py", ("langchain-openai==1.7.4", "openai==3.57.0")),
    Client("pydantic-ai", "pydantic_ai_python.py", ("pydantic-ai-slim[openai]==2.68.0", "openai==3.57.0")),
    Client("instructor", "instructor_python.py", ("instructor==1.17.0", "openai==3.3.0")),
    Client("litellm", "litellm_python.py", ("litellm==1.110.2", "openai==3.57.0")),
    Client("llama-index", "llama_index_python.py", ("llama-index-llms-openai-like==0.8.1", "openai==2.54.0")),
    Client(
        "lm-eval", "lm_eval_python.py", ("lm_eval[api]==0.4.13",), light=False, beside=("accelerate==1.12.0",)
    ),
    Client("openai (Node)", "openai_node.mjs", ("openai@6.49.0", "zod@4.6.7")),
    Client(
        "Vercel AI SDK (Node)",
        "ai_sdk.mjs",
        ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"),
    ),
)


def install(clients: Sequence[Client]) -> list[str]:
    """Make the environments that are missing, all at once, as most of it is waiting for the network.
    Returns the names of those that could not be made."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(_installed, clients))
    return [client.name for client, there in zip(clients, done, strict=True) if not there]


def _installed(client: Client) -> bool:
    try:
        client.install()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"clients: {client.name}: {error}", file=sys.stderr)
        return False
    return True
