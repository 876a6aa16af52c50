"""A stopped frontend is replaced; a whole server that is stopped and continued goes on as if nothing were."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from tests.stack.streams import stream_text

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

LENGTH = 1500
"""Tokens"""


def test_a_stopped_frontend_is_replaced(serve: "Serve") -> None:
    stack = serve()
    os.kill(stack.pids["frontend"][0], signal.SIGSTOP)
    stack.program.wait_for("frontend is ready again")
    stack.wait_ready()
    with httpx2.Client(base_url=stack.base_url, timeout=60) as client:
        assert client.get("/v1/models").status_code == 200


async def test_a_whole_tree_that_is_stopped_and_continued_restarts_nothing(serve: "Serve") -> None:
    stack = serve(held=True)
    before = stack.pids
    expected = await stream_text(stack, "Patience", LENGTH)

    lengths = [0]

    def on_text(length: int) -> None:
        if len(lengths) <= 3 and length > lengths[-1]:
            lengths.append(length)
            stack.hold.after(LENGTH // 5)
            os.killpg(stack.program.pid, signal.SIGSTOP)
            while any(_state(pid) != "T" for group in before.values() for pid in group):
                pass  # it takes microseconds
            os.killpg(stack.program.pid, signal.SIGCONT)
        if len(lengths) > 3:
            stack.hold.release()

    stack.hold.after(LENGTH // 5)
    assert await stream_text(stack, "Patience", LENGTH, on_text) == expected
    assert len(lengths) > 3
    assert stack.pids == before
    assert "killing it" not in stack.program.output


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
