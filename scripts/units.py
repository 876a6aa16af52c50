"""What lives and dies together: the engine core, one frontend, or the whole group of workers.

A unit knows how to spawn its processes and whether they are all ready; it decides nothing. The
functions below translate `ServeOptions` into units: which module, with which part of the config.
"""

import socket
from collections.abc import Callable, Sequence

from msgspec import Struct

from protocol.config import EngineCoreConfig, FrontendConfig, ServeOptions, WorkerConfig
from protocol.control import ToChild

from .process import Child, Command
from .restart_policy import CONFIGURATION_EXIT_CODES, Kind
from .run_dir import RunDir


class Death(Struct, frozen=True):
    """How one process of a unit ended."""

    name: str
    pid: int
    exit_code: int
    code: str = ""
    message: str = ""
    hint: str = ""


class Unit:
    """Spawned, killed and restarted as one."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        commands: Callable[[int], Sequence[Command]],
        listener: socket.socket | None = None,
    ) -> None:
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
        self._commands = commands

    def start(self, incarnation: int, now: float) -> None:
        """Spawn every process of a new incarnation."""
        self.incarnation, self.started_at, self.restart_at = incarnation, now, None
        self.deaths.clear()
        self.was_ready = False
        for command in self._commands(incarnation):
            self.children.append(Child(command))

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

    def root_cause(self) -> Death:
        """The death that explains the rest: a configuration error, else one with a reason, else the first."""
        told = [death for death in self.deaths if death.message]
        fatal = [death for death in self.deaths if death.exit_code in CONFIGURATION_EXIT_CODES]
        return (fatal or told or self.deaths)[0]


def plan_units(options: ServeOptions, run_dir: RunDir, listeners: Sequence[socket.socket]) -> list[Unit]:
    """All units of a server, in the order in which they are started."""
    several = len(listeners) > 1
    frontends = [
        Unit("frontend", name, _frontend(name, index, listener, options, run_dir), listener)
        for index, listener in enumerate(listeners)
        for name in [f"frontend {index}" if several else "frontend"]
    ]
    return [
        Unit("engine_core", "engine core", _engine_core(options, run_dir)),
        Unit("worker", "worker", _workers(options, run_dir)),
        *frontends,
    ]


def _engine_core(options: ServeOptions, run_dir: RunDir) -> Callable[[int], list[Command]]:
    def commands(incarnation: int) -> list[Command]:
        config = EngineCoreConfig(
            incarnation=incarnation,
            clients_endpoint=run_dir.clients_endpoint(incarnation),
            workers_endpoint=run_dir.workers_endpoint(incarnation),
            cache=options.cache,
            scheduler=options.scheduler,
            log_level=options.server.log_level,
        )
        return [Command("engine core", "engine_core", config)]

    return commands


def _workers(options: ServeOptions, run_dir: RunDir) -> Callable[[int], list[Command]]:
    size = options.parallel.tensor_parallel_size
    arguments = ("--stub",) if options.parallel.worker == "stub" else ()

    def commands(incarnation: int) -> list[Command]:
        group_dir = run_dir.make_group_dir(incarnation)
        return [
            Command(f"worker {rank}" if size > 1 else "worker", "worker", config, arguments)
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
                )
            ]
        ]

    return commands


def _frontend(
    name: str, index: int, listener: socket.socket, options: ServeOptions, run_dir: RunDir
) -> Callable[[int], list[Command]]:
    def commands(incarnation: int) -> list[Command]:
        config = FrontendConfig(
            incarnation=incarnation,
            index=index,
            listen_fd=listener.fileno(),
            model=options.model,
            frontend=options.frontend,
            metrics_dir=run_dir.metrics_dir if options.frontend.frontends > 1 else "",
            log_level=options.server.log_level,
        )
        return [Command(name, "frontend", config, inherit=(listener.fileno(),))]

    return commands
