"""docs/reliability.md: its commands are ones that work."""

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from scripts.bench.commands import COMMANDS as BENCHMARKS
from scripts.flags import parse_serve
from scripts.options import declared_options
from scripts.soak import cli as soak_cli
from tests.conftest import ROOT
from tests.stack.conftest import serve, tiny_checkpoint

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

__all__ = ["serve", "tiny_checkpoint"]

PAGE = (ROOT / "docs" / "reliability.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
COMMANDS = [
    shlex.split(line)[1:] for block in SHELL for line in block.splitlines() if line.startswith("tern ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one(command: Sequence[str]) -> None:
    name, *arguments = command
    match name:
        case "serve":
            parse_serve(arguments, {})
        case "soak":
            assert soak_cli.SOAK.parse_own(arguments, {})[1] == []
        case "bench":
            BENCHMARKS[arguments[0]].parse_own(arguments[1:], {})
        case _:
            assert name in ("keys", "replay")
            assert len(arguments) == 1


def test_every_flag_is_one() -> None:
    known = {option.flag for option in declared_options()}
    of_others = {"--migration-limit", "--show-tokens", "--minutes", "--streams", "--fault-every", "--seed"}
    of_others |= {"--repetitions", "--goodput-seconds", "--requests"}
    for flag in set(re.findall(r"--[a-z][a-z-]+", PAGE)) - of_others:
        assert flag.replace("--no-", "--") in known, flag


def test_a_stream_is_taken_up_again_as_shown(serve: "Serve") -> None:
    [block] = [block for block in SHELL if "Last-Event-ID" in block]
    stack = serve()
    block = block.replace("127.0.0.1:8000", urlsplit(stack.base_url).netloc).replace("tern-mini", stack.model)
    block = block.replace(
        '"stream": true', '"stream": true, "ignore_eos": true'
    )  # the stub ends when it likes
    block = block.replace("ask -H", "echo ----; ask -H") + "echo ----; ask"
    done = subprocess.run(["bash", "-c", block], capture_output=True, text=True, timeout=60, check=True)
    beginning, rest, whole = map(text_of, done.stdout.split("----"))
    assert beginning
    assert whole.startswith(beginning)
    assert rest
    assert whole.endswith(rest)
    assert len(rest) < len(whole)


def text_of(stream: str) -> str:
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["text"] for event in events)
