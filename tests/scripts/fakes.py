"""`python -m fakes FOLDER`: a supervisor over fake processes, which do what the files in FOLDER say.

`python -m fakes --fake FOLDER NAME …` is such a process. It appends what it is told to FOLDER/NAME.told,
and follows FOLDER/NAME.does, one of: serve (the default) · crash · misconfigured · stubborn · silent ·
mute (closes its channel and stays) · crash_once · hang_once · slow_once (until its stacks are dumped) ·
busy_streams (does not end when it retires) · leaves (something for its
successor). While there is a FOLDER/KIND.lacks, a unit of that kind cannot
be started for want of descriptors.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

from protocol.config import EngineCoreConfig
from protocol.control import ChildChannel, Drain, Failed, Keep, Phase, Quit, Ready, Retire, enter
from protocol.options import CacheOptions, SchedulerOptions
from protocol.progress import Board, Progress
from scripts import supervisor as supervisor_module
from scripts.process import Command
from scripts.restart_policy import RestartPolicy
from scripts.run_dir import RunDir
from scripts.supervisor import Supervisor
from scripts.terminal import Terminal
from scripts.units import Unit
from scripts.watch import Watch

BUDGET_S = 0.5


def fake(folder: Path, name: str) -> int:
    channel, config = enter(EngineCoreConfig)
    progress = Progress(config.progress_fd, config.progress_row)
    told = folder / f"{name}.told"
    does = (folder / f"{name}.does").read_text() if (folder / f"{name}.does").exists() else "serve"
    channel.send(Phase("loading", "a lot", 0.5))
    if (inherited := channel.take()) >= 0:
        note(told, config.incarnation, f"inherits from {os.pread(inherited, 20, 0).decode()}")
    match does:
        case "crash":
            raise SystemExit(3)
        case "crash_once":
            (folder / f"{name}.does").write_text("serve")
            os.kill(os.getpid(), signal.SIGSEGV)
        case "misconfigured":
            channel.send(Failed("startup_error", "no such\nmodel", "name one", 78))
            return 78
        case "mute":
            channel.close()
            return linger()
        case "leaves":
            descriptor = os.memfd_create("left")
            os.write(descriptor, str(config.incarnation).encode())
            channel.send(Keep(), descriptor)
            os.close(descriptor)
        case "silent":
            note(told, config.incarnation, "silent")
            return linger()
    channel.send(Ready({"num_blocks": "10", "block_size": "16"}))
    match does:
        case "hang_once":
            (folder / f"{name}.does").write_text("serve")
            progress.busy(BUDGET_S)
            return linger()
        case "slow_once":
            (folder / f"{name}.does").write_text("serve")
            be_slow(progress)
    return listen(channel, told, config.incarnation, ENDS.get(does, ENDS["serve"]))


ENDS: dict[str, tuple[type, ...]] = {
    "serve": (Quit, Drain, Retire),
    "busy_streams": (Quit, Drain),
    "stubborn": (),
}
"""What they obey."""


def listen(channel: ChildChannel, told: Path, incarnation: int, ends: tuple[type, ...]) -> int:
    while True:
        message = channel.receive(wait=True)
        note(told, incarnation, message)
        if isinstance(message, ends):
            return 0


def note(told: Path, incarnation: int, what: object) -> None:
    with told.open("a") as file:
        print(incarnation, what, file=file, flush=True)


def be_slow(progress: Progress) -> None:
    """Be at one thing for longer than its budget, and go on as soon as that has been noticed."""
    reader, writer = os.pipe()
    stderr = os.dup(2)
    os.dup2(writer, 2)
    progress.busy(BUDGET_S)
    stacks = os.read(reader, 1 << 16)
    progress.idle()
    os.dup2(stderr, 2)
    os.write(2, stacks)


def linger() -> int:
    while True:
        time.sleep(60)


def unit(folder: Path, board: Board, row: int, kind: str, *names: str) -> Unit:
    def commands(incarnation: int, first_row: int) -> list[Command]:
        if (folder / f"{kind}.lacks").exists():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        configs = [
            EngineCoreConfig(
                incarnation=incarnation, clients_endpoint="", workers_endpoint="", cache=CacheOptions(),
                scheduler=SchedulerOptions(), progress_fd=board.fd, progress_row=first_row + index,
            )
            for index in range(len(names))
        ]  # fmt: skip
        return [
            Command(name, "fakes", config, ("--fake", str(folder), name))
            for name, config in zip(names, configs, strict=True)
        ]

    return Unit(kind, kind, commands, row, spare_row=row + 1 if kind == "frontend" else None)  # type: ignore[arg-type]


def supervise(folder: Path) -> int:
    for name in ("LOST_GRACE_S", "QUIT_GRACE_S", "DRAIN_SLACK_S"):
        setattr(supervisor_module, name, float(os.environ["GRACE"]))
    run_dir = RunDir.open(str(folder / "run"))
    terminal = Terminal(os.environ)
    board = Board(7)
    began = time.monotonic()
    supervisor = Supervisor(
        units=[
            unit(folder, board, 0, "engine_core", "core"),
            unit(folder, board, 1, "worker", "rank0", "rank1"),
            unit(folder, board, 3, "frontend", "front0"),
            unit(folder, board, 5, "frontend", "front1"),
        ],
        policy=RestartPolicy(max_restarts=3, window_s=60),
        watch=Watch(board, began, enabled=True),
        run_dir=run_dir,
        terminal=terminal,
        began=began,
        shutdown_timeout_s=float(os.environ.get("SHUTDOWN_TIMEOUT", "5")),
        announce=lambda facts, pids, started_in: terminal.show(f"all ready: {facts} {started_in}"),
    )
    try:
        return supervisor.run()
    finally:
        run_dir.remove()


if __name__ == "__main__":
    if sys.argv[1] == "--fake":
        sys.exit(fake(Path(sys.argv[2]), sys.argv[3]))
    sys.exit(supervise(Path(sys.argv[1])))
