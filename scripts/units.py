"""What lives and dies together: the engine core, one frontend, or the whole group of workers.

A unit knows how to spawn its processes and whether they are all ready; it decides nothing. The
functions below translate `ServeOptions` into units: which module, with which part of the config.
"""

import os
import socket
from collections.abc import Callable, Sequence

from msgspec import Struct

from protocol.config import EngineCoreConfig, FrontendConfig, WorkerConfig
from protocol.control import ToChild
from protocol.errors import StartupError
from protocol.options import ServeOptions
from protocol.progress import Board

from .process import Child, Command, is_crash
from .restart_policy import CONFIGURATION_EXIT_CODES, Kind
from .run_dir import RunDir

Commands = Callable[[int, int], Sequence[Command]]
"""(incarnation, first row of the progress board) → what to spawn."""


class Death(Struct, frozen=True):
    """How one process of a unit ended."""

    name: str
    pid: int
    exit_code: int
    how: str
    """For people: "exited with code 3"."""
    code: str = ""
    message: str = ""
    hint: str = ""

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.name} (pid {self.pid}) {self.how}"


class Unit:
    """Spawned, killed and restarted as one."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        commands: "Commands",
        row: int,
        *,
        spare_row: int | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        """`row` is the first of its rows of the progress board; with `spare_row` it may have a successor."""
        self.kind: Kind = kind
        self.name = name
        self.listener = listener
        """Kept open here, so that connections wait in its backlog for a frontend's successor."""
        self.children: list[Child] = []
        """Those that run, or are dying."""
        self.deaths: list[Death] = []
        """Of this incarnation, in the order in which they were seen."""
        self.incarnation = 0
        self.started_at = 0.0
        self.restart_at: float | None = None
        self.was_ready = False
        self.replaces: Unit | None = None
        """The unit that is to retire as soon as this one is ready."""
        self.retired = False
        """Its end is no death."""
        self.row = row
        self._commands, self._spare_row = commands, spare_row
        self._kept: dict[str, int] = {}
        """Descriptors for the next child of each name."""

    def successor(self) -> "Unit":
        """One that replaces this one while it still runs: not yet started, on the same listener."""
        assert self._spare_row is not None, f"{self.name} cannot have a successor"
        unit = Unit(
            self.kind, self.name, self._commands, self._spare_row, spare_row=self.row, listener=self.listener
        )
        unit.replaces = self
        return unit

    def start(self, incarnation: int, now: float) -> None:
        """Spawn every process of a new incarnation. Raises StartupError if that is not possible, and then
        there is none."""
        self.incarnation, self.started_at, self.restart_at = incarnation, now, None
        if not self.was_ready and any(is_crash(death.exit_code) for death in self.deaths):
            self.let_go()  # what they got may be why they did not come far
        self.deaths.clear()
        self.was_ready = False
        try:
            for command in self.commands(incarnation):
                kept = [self._kept[command.name]] if command.name in self._kept else []
                self.children.append(Child(command, *kept))
        except OSError as error:
            self.kill()
            for child in self.children:
                child.reap()
            self.children.clear()
            raise StartupError(f"{self.name} cannot be started: {error.strerror or error}") from error

    def commands(self, incarnation: int) -> Sequence[Command]:
        """What an incarnation consists of."""
        return self._commands(incarnation, self.row)

    def keep(self, child: Child) -> None:
        """What came with its Keep, in place of what was kept before."""
        earlier, descriptor = self._kept.pop(child.name, -1), child.channel.take()
        if earlier >= 0:
            os.close(earlier)
        if descriptor >= 0:
            self._kept[child.name] = descriptor

    def let_go(self) -> None:
        """Of all that is kept."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    @property
    def is_rolling(self) -> bool:
        """It is about to replace another, or was replaced: there are two of it."""
        return self.retired or self.replaces is not None

    @property
    def is_ready(self) -> bool:
        """Every process serves."""
        return bool(self.children) and not self.deaths and all(child.ready for child in self.children)

    def send(self, message: ToChild) -> None:
        for child in self.children:
            child.send(message)

    def kill(self) -> None:
        for child in self.children:
            child.kill()

    def ended_by_itself(self, exit_code: int) -> bool:
        """Whether one whose end was seen with this code, and all others that have ended by now, did so by
        themselves. If any was killed from outside, then that is why the others ended: they miss it."""
        others = [code for child in self.children if (code := child.peek()) is not None]
        return all(is_crash(code) for code in (exit_code, *others))

    def root_cause(self) -> Death:
        """The death that explains the rest: a configuration error, else one with a reason, else the first."""
        told = [death for death in self.deaths if death.message]
        fatal = [death for death in self.deaths if death.exit_code in CONFIGURATION_EXIT_CODES]
        return (fatal or told or self.deaths)[0]


def make_board(options: ServeOptions) -> Board:
    """With the rows that `plan_units` hands out: engine core, workers, and two for each frontend."""
    return Board(1 + options.parallel.tensor_parallel_size + 2 * options.frontend.frontends)


def plan_units(
    options: ServeOptions, run_dir: RunDir, listeners: Sequence[socket.socket], board_fd: int
) -> list[Unit]:
    """All units of a server, in the order in which they are started."""
    several = len(listeners) > 1
    first_row = 1 + options.parallel.tensor_parallel_size
    frontends = []
    for index, listener in enumerate(listeners):
        name = f"frontend {index}" if several else "frontend"
        commands = _frontend(name, index, listener, options, run_dir, board_fd)
        row = first_row + 2 * index
        frontends.append(Unit("frontend", name, commands, row, spare_row=row + 1, listener=listener))
    return [
        Unit("engine_core", "engine core", _engine_core(options, run_dir, board_fd), 0),
        Unit("worker", "worker", _workers(options, run_dir, board_fd), 1),
        *frontends,
    ]


def _engine_core(options: ServeOptions, run_dir: RunDir, board_fd: int) -> Commands:
    def commands(incarnation: int, row: int) -> list[Command]:
        config = EngineCoreConfig(
            incarnation=incarnation,
            clients_endpoint=run_dir.clients_endpoint(incarnation),
            workers_endpoint=run_dir.workers_endpoint(incarnation),
            cache=options.cache,
            scheduler=options.scheduler,
            log_level=options.server.log_level,
            progress_fd=board_fd,
            progress_row=row,
            status_interval_s=options.server.status_interval,
            journal=options.server.journal,
            journal_bytes=options.server.journal_bytes,
            crash_dir=options.server.crash_dir,
            detach_grace_s=options.frontend.detach_grace,
            engine_endpoint=options.server.engine_endpoint,
            curve_secret_key=options.server.curve_secret_key,
            curve_allowed_keys=options.server.curve_allowed_keys,
            tokenizer=options.model.tokenizer or options.model.model,
        )
        return [Command("engine core", "engine_core", config, as_json=_as_json(options))]

    return commands


def _workers(options: ServeOptions, run_dir: RunDir, board_fd: int) -> Commands:
    size = options.parallel.tensor_parallel_size
    arguments = ("--stub",) if options.parallel.worker == "stub" else ()

    def commands(incarnation: int, row: int) -> list[Command]:
        group_dir = run_dir.make_group_dir(incarnation)
        return [
            Command(
                f"worker {rank}" if size > 1 else "worker",
                "worker",
                config,
                arguments,
                as_json=_as_json(options),
            )
            for rank in range(size)
            for config in [
                WorkerConfig(
                    incarnation=incarnation,
                    rank=rank,
                    group_dir=group_dir,
                    model=options.model,
                    cache=options.cache,
                    scheduler=options.scheduler,
                    parallel=options.parallel,
                    log_level=options.server.log_level,
                    progress_fd=board_fd,
                    progress_row=row + rank,
                )
            ]
        ]

    return commands


def _frontend(
    name: str, index: int, listener: socket.socket, options: ServeOptions, run_dir: RunDir, board_fd: int
) -> Commands:
    def commands(incarnation: int, row: int) -> list[Command]:
        config = FrontendConfig(
            incarnation=incarnation,
            index=index,
            listen_fd=listener.fileno(),
            model=options.model,
            frontend=options.frontend,
            metrics_dir=run_dir.metrics_dir if options.frontend.frontends > 1 else "",
            responses_dir=run_dir.responses_dir,
            log_level=options.server.log_level,
            log_format=options.server.log_format,
            progress_fd=board_fd,
            progress_row=row,
        )
        inherit = (listener.fileno(),)
        return [Command(name, "frontend", config, inherit=inherit, as_json=_as_json(options))]

    return commands


def _as_json(options: ServeOptions) -> bool:
    return options.server.log_format == "json"
