"""`python -m fakes FOLDER`: a supervisor over fake processes, which do what the files in FOLDER say.

`python -m fakes --fake FOLDER NAME …` is such a process. It appends what it is told to FOLDER/NAME.told,
and follows FOLDER/NAME.does, one of: serve (the default) · crash · misconfigured · stubborn · silent ·
mute (closes its channel and stays) · crash_once.
"""

import os
import signal
import sys
import time
from pathlib import Path

from protocol.config import CacheOptions, EngineCoreConfig, SchedulerOptions
from protocol.control import ChildChannel, Drain, Failed, Phase, Quit, Ready, enter
from scripts.process import Command
from scripts.restart_policy import RestartPolicy
from scripts.run_dir import RunDir
from scripts.supervisor import Supervisor
from scripts.terminal import Terminal
from scripts.units import Unit


def fake(folder: Path, name: str) -> int:
    channel, config = enter(EngineCoreConfig)
    does = (folder / f"{name}.does").read_text() if (folder / f"{name}.does").exists() else "serve"
    channel.send(Phase("loading", "a lot", 0.5))
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
        case "silent":
            return linger()
    channel.send(Ready({"num_blocks": "10", "block_size": "16"}))
    return listen(channel, folder / f"{name}.told", config.incarnation, stubborn=does == "stubborn")


def listen(channel: ChildChannel, told: Path, incarnation: int, *, stubborn: bool) -> int:
    while True:
        message = channel.receive(wait=True)
        with told.open("a") as file:
            print(incarnation, message, file=file, flush=True)
        if isinstance(message, Quit | Drain) and not stubborn:
            return 0


def linger() -> int:
    while True:
        time.sleep(60)


def unit(folder: Path, kind: str, *names: str) -> Unit:
    def commands(incarnation: int) -> list[Command]:
        config = EngineCoreConfig(
            incarnation=incarnation, clients_endpoint="", workers_endpoint="", cache=CacheOptions(),
            scheduler=SchedulerOptions(),
        )  # fmt: skip
        return [Command(name, "fakes", config, ("--fake", str(folder), name)) for name in names]

    return Unit(kind, kind, commands)  # type: ignore[arg-type]


def supervise(folder: Path) -> int:
    run_dir = RunDir.open(str(folder / "run"))
    terminal = Terminal(os.environ)
    supervisor = Supervisor(
        units=[
            unit(folder, "engine_core", "core"),
            unit(folder, "worker", "rank0", "rank1"),
            unit(folder, "frontend", "front0"),
            unit(folder, "frontend", "front1"),
        ],
        policy=RestartPolicy(max_restarts=3, window_s=60),
        run_dir=run_dir,
        terminal=terminal,
        began=time.monotonic(),
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
