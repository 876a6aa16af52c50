"""What the kernel says of every process of a server."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.stack.conftest import Stack


@pytest.mark.parametrize(("kind", "oom_score_adj"), [("frontend", 500), ("engine_core", 300), ("worker", 0)])
def test_children_are_hardened(server: "Stack", kind: str, oom_score_adj: int) -> None:
    for pid in server.pids[kind]:
        proc = Path(f"/proc/{pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert int(status["Umask"], 8) == 0o077
        (limit,) = (line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
        assert limit.split()[4:6] == ["0", "0"]
        assert int((proc / "oom_score_adj").read_text()) == oom_score_adj
