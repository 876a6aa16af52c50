"""A supervisor over fake processes (fakes.py): `start(**what each does)`."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE_S
from tests.scripts.fake_api import FakeServer

if TYPE_CHECKING:
    from tests.conftest import Launch, Program

HERE = str(Path(__file__).parent)


class FakeStack:
    """A supervisor over fakes, and the folder through which they are seen and steered."""

    def __init__(self, program: "Program", folder: Path) -> None:
        self.program = program
        self.folder = folder

    @property
    def pids(self) -> dict[str, list[int]]:
        pids: dict[str, list[int]] = json.loads((self.folder / "run" / "pids.json").read_text())
        return pids

    def told(self, name: str) -> str:
        path = self.folder / f"{name}.told"
        return path.read_text() if path.exists() else ""

    def kill(self, kind: str, index: int = 0, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pids[kind][index], number)

    def ends(self, number: signal.Signals) -> int:
        """Exit code after a signal; nothing may be left."""
        self.program.signal(number)
        return self.gone()

    def gone(self) -> int:
        exit_code = self.program.wait()
        assert self.program.survivors() == []
        assert "Traceback" not in self.program.output, self.program.output
        assert not (self.folder / "run").exists()
        return exit_code


StartFakes = Callable[..., FakeStack]


@pytest.fixture
def start(launch: "Launch", tmp_path: Path) -> StartFakes:
    """`grace`: seconds that a child has that should end. By default, a busy machine gets all of them to."""

    def start_fakes(
        *, ready: bool = True, shutdown_timeout: float = 5, grace: float = DEADLINE_S, **does: str
    ) -> FakeStack:
        for name, behaviour in does.items():
            (tmp_path / f"{name}.does").write_text(behaviour)
        paths = os.pathsep.join([HERE, str(Path(HERE).parent.parent)])
        times = {"SHUTDOWN_TIMEOUT": str(shutdown_timeout), "GRACE": str(grace)}
        program = launch("fakes", str(tmp_path), PYTHONPATH=paths, **times)
        if ready:
            program.wait_for("all ready")
        return FakeStack(program, tmp_path)

    return start_fakes


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """The API as far as the commands that ask it need it."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
