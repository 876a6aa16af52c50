"""A whole server to throw things at: `target`. It must come out as it went in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.stack.conftest import Stack, tiny_checkpoint

if TYPE_CHECKING:
    from tests.conftest import Program

    Launch = Callable[..., Program]

__all__ = ["target", "tiny_checkpoint"]

OPTIONS = {
    "--max-model-len": 128,
    "--receive-timeout": 0.5,
    "--write-stall": 5,
    "--frontends": 2,
    "--threads": 1,
}


def _good(stack: Stack) -> str:
    """What a client hears that asks nothing unusual."""
    body = {"prompt": "Tern", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    answer = httpx2.post(f"{stack.base_url}/v1/completions", json=body, timeout=60)
    text: str = answer.raise_for_status().json()["choices"][0]["text"]
    return text


@pytest.fixture(scope="module")
def target(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    launcher: "Callable[[Path], Launch]",
) -> Iterator[Stack]:
    """With the module's RECEIVE_TIMEOUT_S.

    Afterwards: the same processes, the same answer to a good client, and no traceback in the log.
    """
    folder = tmp_path_factory.mktemp("target")
    options = OPTIONS | {"--receive-timeout": request.module.RECEIVE_TIMEOUT_S}
    flags = [str(one) for option in options.items() for one in option]
    fixed = ["--port", "0", "--worker", "stub", "--run-dir", str(folder / "run")]
    program = launcher(folder)("scripts.cli", "serve", str(tiny_checkpoint), *fixed, *flags)
    stack = Stack(program, folder / "run")
    before = stack.pids, _good(stack)
    yield stack
    assert (stack.pids, _good(stack)) == before, program.output
    assert stack.ends(SIGTERM) == 0
    assert "starting it again" not in program.output
