"""What each process is handed."""

import socket
from pathlib import Path

import msgspec
import pytest

from protocol.config import EngineCoreConfig
from protocol.frontend_options import FrontendOptions
from protocol.options import ParallelOptions, ServeOptions, ServerOptions
from scripts.process import Command
from scripts.run_dir import RunDir
from scripts.units import Unit, make_board, plan_units

OPTIONS = ServeOptions(
    parallel=ParallelOptions(tensor_parallel_size=3),
    frontend=FrontendOptions(frontends=2, detach_grace=7),
    server=ServerOptions(journal="/j", journal_bytes=1 << 20, crash_dir="/c"),
)


@pytest.fixture
def commands(tmp_path: Path) -> list[Command]:
    """Of all units and of the frontends' successors."""
    run_dir = RunDir.open(str(tmp_path / "run"))
    listeners = [socket.socket() for _ in range(2)]
    board = make_board(OPTIONS)
    units = plan_units(OPTIONS, run_dir, listeners, board.fd)
    units += [unit.successor() for unit in units if unit.kind == "frontend"]
    found = [command for number, unit in enumerate(units) for command in unit.commands(number)]
    for row in {command.config.progress_row for command in found}:
        board.read(row)
    for listener in listeners:
        listener.close()
    board.close()
    run_dir.remove()
    return found


def test_each_process_has_a_row_of_its_own(commands: list[Command]) -> None:
    rows = [command.config.progress_row for command in commands]
    assert sorted(rows) == list(range(8))
    assert len({command.config.progress_fd for command in commands}) == 1


def test_rows_come_back_after_two_successions() -> None:
    unit = Unit("frontend", "frontend", lambda incarnation, row: [], 3, spare_row=4)
    first, second = unit.successor(), unit.successor().successor()
    assert (unit.row, first.row, second.row) == (3, 4, 3)
    assert first.replaces is unit


def test_the_engine_core_is_told_what_to_record(commands: list[Command]) -> None:
    (config,) = (command.config for command in commands if isinstance(command.config, EngineCoreConfig))
    assert msgspec.structs.asdict(config).items() >= {
        "journal": "/j", "journal_bytes": 1 << 20, "crash_dir": "/c", "detach_grace_s": 7.0,
    }.items()  # fmt: skip
