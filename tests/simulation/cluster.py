"""A simulated server: one engine core, one worker group, some frontends, and the supervisor between them.

The supervisor here has the real policy and the real judgement of liveness; it sees deaths after a few
milliseconds, and what it starts needs its time. Knows nothing of users but that they may be blamed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, assert_never

from engine_core.engine import Engine
from engine_core.request import Request
from protocol.config import EngineCoreConfig
from protocol.control import PeerGone
from protocol.messages import ClientMessage, Submit
from protocol.options import CacheOptions, SchedulerOptions
from scripts.liveness import LOOK_INTERVAL_S, Liveness, Verdict
from scripts.restart_policy import GiveUp, Kind, Restart, RestartPolicy
from worker.kv_layout import Window
from worker.stub import StubRunner

from .core_process import EngineCore, Wire
from .frontend_process import Frontend
from .network import FROM_WORKER, TO_CLIENT, TO_ENGINE, TO_WORKER, Agenda, Codec, Connection, Link, Weather
from .process import SIGKILL, SIGSEGV, Process
from .simulator import stub_runner
from .users import MAX_MODEL_LEN
from .worker_process import Worker

START_S: dict[Kind, float] = {"engine_core": 0.3, "worker": 0.4, "frontend": 0.3}
_SLOW_START = 0.1
_FIRST_INCARNATION = 17_000_000
_LONGEST_VERDICT_S = 70.0
"""Twice the budget of a step when none was measured yet, and some."""


@dataclass
class Settings:
    """What is the same through the whole life of a cluster."""

    scheduler: SchedulerOptions
    cache: CacheOptions
    windows: Sequence[Window] = (None,)
    """Of the model's layers."""
    num_frontends: int = 1
    step_s: float = 0.01
    detach_grace_s: float = 30.0
    max_restarts: int = 1 << 30
    restart_window_s: float = 60.0
    weather: Weather = field(default_factory=Weather)


class Cluster:
    """Starts at once. `kill`, `hang` and the like do what happens to real processes."""

    def __init__(self, agenda: Agenda, draw: Random, settings: Settings) -> None:
        self.agenda = agenda
        self.draw = draw
        self.settings = settings
        self.engine: EngineCore | None = None
        self.worker: Worker | None = None
        self.frontends: list[Frontend | None] = [None] * settings.num_frontends
        self.retired: list[Frontend] = []
        """They take nobody new, and exit once their streams have ended."""
        self._successors: dict[int, Frontend] = {}
        """By place: they start, to replace the one that serves there."""
        self.gave_up: str | None = None
        self.deaths: dict[Kind, int] = {"engine_core": 0, "worker": 0, "frontend": 0}
        self.verdicts = 0
        """Processes killed because they hung."""
        self.calm = False
        """Nothing starts slowly any more."""
        self.counters: dict[str, int] = {}
        """Of engine cores that are gone."""
        self.on_frontend_gone: Callable[[Frontend], object] = lambda frontend: None
        self.on_trouble: Callable[[list[Request], bool], object] = lambda requests, by_itself: None
        """These requests were computed when something failed."""
        self._policy = RestartPolicy(settings.max_restarts, settings.restart_window_s)
        self._incarnations = _FIRST_INCARNATION
        self._runner: StubRunner | None = None
        self._lives: dict[Process, Liveness] = {}
        self._stopped: set[Process] = set()
        """As far as the supervisor knows."""
        self._looked_at = 0.0
        self._look_until = 0.0
        self._looking = False
        self._start("engine_core")
        self._start("worker")
        for index in range(settings.num_frontends):
            self._start("frontend", index)

    @property
    def processes(self) -> list[Process]:
        """Those that live, also while they start."""
        frontends = (*self.frontends, *self._successors.values(), *self.retired)
        return [one for one in (self.engine, self.worker, *frontends) if one is not None]

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    def _start(self, kind: Kind, index: int = 0) -> None:
        if self.gave_up is not None or (kind == "frontend" and self.frontends[index] is not None):
            return
        self._incarnations += 1
        process: Process
        match kind:
            case "engine_core":
                process = self.engine = self._make_engine_core()
            case "worker":
                process = self.worker = self._make_worker()
            case "frontend":
                process = self.frontends[index] = self._make_frontend(index)
            case _:
                assert_never(kind)
        seconds = START_S[kind] * self.draw.uniform(0.8, 1.5)
        if kind == "worker" and not self.calm and self.draw.random() < _SLOW_START:
            seconds = self.draw.uniform(2, 20)
        self.agenda.after(seconds, b"ready", partial(self._on_ready, process))

    def _make_engine_core(self) -> EngineCore:
        config = EngineCoreConfig(
            incarnation=self._incarnations,
            clients_endpoint="",
            workers_endpoint="",
            cache=self.settings.cache,
            scheduler=self.settings.scheduler,
            detach_grace_s=self.settings.detach_grace_s,
        )
        return EngineCore(self.agenda, config, self._on_exit, self._pass_on_trouble)

    def _make_worker(self) -> Worker:
        """The runner is made once, as that costs more than an hour of an idle server."""
        if self._runner is None:
            settings = self.settings
            self._runner = stub_runner(settings.cache, settings.scheduler, MAX_MODEL_LEN, settings.windows)
        self._runner.reset()
        return Worker(
            self.agenda, self.draw, self._incarnations, self._on_exit, self._runner, self.settings.step_s
        )

    def _make_frontend(self, index: int) -> Frontend:
        frontend = Frontend(self.agenda, self._incarnations, self._on_exit, index)
        if self.settings.weather.is_clear:
            frontend.on_silence = self._check_silence
        return frontend

    def _check_silence(self, frontend: Frontend, messages: list[ClientMessage]) -> None:
        """Where no frame is lost, patience runs out only for what the engine core knows."""
        core, connection = self.engine, frontend.connection
        if core is None or connection is None or not connection.open or core.clients.inbox:
            return
        if connection.up.under_way or connection.down.under_way or not frontend.idle:
            return
        client = core.engine.desk.clients.get(connection.peer)
        for message in messages:
            if isinstance(message, Submit) and client is not None:
                assert message.request_id in client.requests, "a request was lost, and no frame"

    def _on_ready(self, process: Process) -> None:
        if not process.alive:
            return
        process.ready = process.was_ready = True
        self._policy.on_ready(process.kind)
        if process is self.engine:
            for other in self.processes:
                self._introduce(other)
            process.wake(self.agenda.now)
        else:
            self._introduce(process)

    def _introduce(self, process: Process) -> None:
        """Tell it where the engine core is, if both are there."""
        engine = self.engine
        if engine is None or not engine.ready or not process.ready:
            return
        if isinstance(process, Worker):
            process.connect(self._link(process, engine.workers, FROM_WORKER, TO_WORKER, process.arrive))
        elif isinstance(process, Frontend):
            process.connect(self._link(process, engine.clients, TO_ENGINE, TO_CLIENT, process.arrive))

    def _link(
        self, process: Process, wire: Wire, up: Codec, down: Codec, deliver: Callable[[Any], object]
    ) -> Connection:
        peer = f"{process.kind} {process.incarnation}".encode()
        lossless = process.kind == "worker"
        make = partial(Link, self.agenda, self.draw, self.settings.weather, lossless=lossless)
        connection = Connection(peer, make(up, partial(wire.arrive, peer)), make(down, deliver))
        wire.connections[peer] = connection
        return connection

    # ── rolling ─────────────────────────────────────────────────────────────────────────────────

    def roll(self, index: int) -> None:
        """Replace the frontend there, as Roll does: first its successor is ready, then it retires."""
        old = self.frontends[index]
        if old is None or not old.ready or index in self._successors:
            return
        self._incarnations += 1
        successor = self._successors[index] = self._make_frontend(index)
        seconds = START_S["frontend"] * self.draw.uniform(0.8, 1.5)
        self.agenda.after(seconds, b"successor", partial(self._on_successor_ready, successor))

    def _on_successor_ready(self, successor: Frontend) -> None:
        if not successor.alive:
            return
        del self._successors[successor.index]
        old, self.frontends[successor.index] = self.frontends[successor.index], successor
        if old is not None:
            self._retire(old)
        self._add("rolled", 1)
        self._on_ready(successor)

    def drain(self) -> None:
        """The server stops: nobody new is let in, and whoever is there gets its answer."""
        for index, frontend in enumerate(self.frontends):
            if frontend is not None:
                self.frontends[index] = None
                self._retire(frontend)

    def _retire(self, frontend: Frontend) -> None:
        self.retired.append(frontend)
        if frontend.ready:
            frontend.retire()
        else:
            self.kill(frontend)  # what was started in a dead one's place has nothing to finish

    # ── dying ───────────────────────────────────────────────────────────────────────────────────

    def kill(self, process: Process) -> None:
        process.exit(SIGKILL)

    def _on_exit(self, process: Process, exit_code: int) -> None:
        self._lives.pop(process, None)
        expected = isinstance(process, Frontend) and self._leaves_no_gap(process)
        self.deaths[process.kind] += not expected
        if isinstance(process, EngineCore):
            self._count(process.engine)
            self.engine = None
        elif process is self.worker:
            self.worker = None
        elif isinstance(process, Frontend):
            if not expected:
                self.frontends[process.index] = None
            self._add("gaps", process.registry.gaps)
            self.on_frontend_gone(process)
        seen_s = self.draw.uniform(0.0005, 0.005)
        self.agenda.after(seen_s, b"death", partial(self._on_death, process, exit_code, expected))

    def _leaves_no_gap(self, frontend: Frontend) -> bool:
        """One that was replaced has gone, or a successor never got ready: another serves there."""
        if frontend in self.retired:
            self.retired.remove(frontend)
            return True
        return self._successors.get(frontend.index) is frontend and bool(self._successors.pop(frontend.index))

    def _on_death(self, process: Process, exit_code: int, expected: bool) -> None:
        """The supervisor sees it."""
        if process.kind != "engine_core" and self.engine is not None:
            crashed = exit_code > 0 or exit_code == SIGSEGV
            self.engine.tell(PeerGone(process.incarnation, crashed, f"exit code {exit_code}"))
        if expected:
            return
        match self._policy.on_death(process.kind, exit_code, process.was_ready, self.agenda.now):
            case Restart(delay_s):
                index = process.index if isinstance(process, Frontend) else 0
                self.agenda.after(delay_s, b"start", partial(self._start, process.kind, index))
            case GiveUp(why):
                self.gave_up = why
                for one in self.processes:
                    self.kill(one)

    def _pass_on_trouble(self, requests: list[Request], by_itself: bool) -> None:
        self.on_trouble(requests, by_itself)

    def _count(self, engine: Engine) -> None:
        stats = engine.stats()
        for name in ("preemptions", "prefix_cache_hits", "resubmissions", "crashed_requests", "steps"):
            self._add(name, getattr(stats, name))

    def _add(self, name: str, count: int) -> None:
        self.counters[name] = self.counters.get(name, 0) + count

    # ── hanging ─────────────────────────────────────────────────────────────────────────────────

    def hang(self, process: Process, seconds: float, *, stopped: bool) -> None:
        """It handles nothing for so long, unless the supervisor's verdict comes first."""
        process.hang(seconds, stopped=stopped)
        self.look_for(seconds)

    def look_for(self, seconds: float) -> None:
        """Let the supervisor look at the progress board for a while, as it does all the time: where nothing
        hangs, there is nothing to see."""
        self._look_until = max(self._look_until, self.agenda.now + min(seconds, _LONGEST_VERDICT_S))
        if not self._looking:
            self._looking, self._looked_at = True, self.agenda.now
            self._look()

    def _look(self) -> None:
        now = self.agenda.now
        since_s, self._looked_at = now - self._looked_at, now
        for process in self.processes:
            life = self._lives.setdefault(process, Liveness())
            self._follow_stops(process, life)
            verdict = life.look(process.reading(), 0.0, since_s)
            if verdict in (Verdict.HUNG, Verdict.STOPPED):
                assert process.hung, f"{process.kind} was killed, and it was only slow"
                self.verdicts += 1
                self.kill(process)
        self._looking = now < self._look_until
        for process in [] if self._looking else self.processes:
            assert not process.hung, f"{process.kind} hangs, and nobody has seen it"
        if self._looking:
            self.agenda.after(LOOK_INTERVAL_S, b"look", self._look)

    def _follow_stops(self, process: Process, life: Liveness) -> None:
        if process.stopped and process not in self._stopped:
            self._stopped.add(process)
            life.on_stop()
        elif not process.stopped and process in self._stopped:
            self._stopped.remove(process)
            life.on_continue()
