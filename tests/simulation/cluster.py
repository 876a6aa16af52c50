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
from scripts.process import is_crash
from scripts.restart_policy import GiveUp, Kind, Restart, RestartPolicy
from worker.kv_layout import Window
from worker.stub import StubRunner

from .core_process import EngineCore, Wire
from .frontend_process import Frontend
from .group import Meeting, Rank
from .network import FROM_WORKER, TO_CLIENT, TO_ENGINE, TO_WORKER, Agenda, Codec, Connection, Link, Weather
from .process import SIGKILL, Process
from .simulator import stub_runner
from .users import MAX_MODEL_LEN, MODEL, User
from .watch import Watch
from .worker_process import Worker

START_S: dict[Kind, float] = {"engine_core": 0.3, "worker": 0.4, "frontend": 0.3}
_SLOW_START = 0.1
_FIRST_INCARNATION = 17_000_000


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
    tokenizer: str = ""
    """Folder of the model's, for grammars; empty: there are none."""
    num_ranks: int = 1
    """Of the worker group."""


@dataclass
class Group:
    """What lives and dies together. The first is the leader."""

    ranks: list[Process]
    exit_codes: list[int] = field(default_factory=list)
    """Of those that are dead, in the order in which they died."""
    seen: bool = False
    """The supervisor has seen that one is dead."""


class Cluster:
    """Starts at once. `kill`, `hang` and the like do what happens to real processes."""

    def __init__(self, agenda: Agenda, draw: Random, settings: Settings) -> None:
        self.agenda = agenda
        self.draw = draw
        self.settings = settings
        self.engine: EngineCore | None = None
        self.worker: Worker | None = None
        """The leader of the group."""
        self.frontends: list[Frontend | None] = [None] * settings.num_frontends
        self.retired: list[Frontend] = []
        """They take nobody new, and exit once their streams have ended."""
        self._successors: dict[int, Frontend] = {}
        """By place: they start, to replace the one that serves there."""
        self.gave_up: str | None = None
        self.deaths: dict[Kind, int] = {"engine_core": 0, "worker": 0, "frontend": 0}
        self.calm = False
        """Nothing starts slowly any more."""
        self.counters: dict[str, int] = {}
        """Of engine cores that are gone."""
        self.on_frontend_gone: Callable[[Frontend], object] = lambda frontend: None
        self.on_trouble: Callable[[list[Request], bool], object] = lambda requests, by_itself: None
        """These requests were computed when something failed."""
        self._policy = RestartPolicy(settings.max_restarts, settings.restart_window_s)
        self._incarnations = _FIRST_INCARNATION
        self._group = Group([])
        self._runner: StubRunner | None = None
        self.watch = Watch(agenda, lambda: self.processes, self._hangs, self.kill)
        self._start("engine_core")
        self._start("worker")
        for index in range(settings.num_frontends):
            self._start("frontend", index)

    @property
    def processes(self) -> list[Process]:
        """Those that live, also while they start."""
        frontends = (*self.frontends, *self._successors.values(), *self.retired)
        ranks = [rank for rank in self._group.ranks if rank.alive]
        return [one for one in (self.engine, *ranks, *frontends) if one is not None]

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
        if kind == "worker":
            for rank in self._group.ranks[1:]:
                late_s = self.draw.uniform(-0.1, 0.1)  # they have met while they loaded
                self.agenda.after(seconds + late_s, b"ready", partial(self._on_ready, rank))

    def _make_engine_core(self) -> EngineCore:
        config = EngineCoreConfig(
            incarnation=self._incarnations,
            clients_endpoint="",
            workers_endpoint="",
            cache=self.settings.cache,
            scheduler=self.settings.scheduler,
            detach_grace_s=self.settings.detach_grace_s,
            tokenizer=self.settings.tokenizer,
        )
        return EngineCore(self.agenda, self.draw, config, self._on_exit, self._pass_on_trouble)

    def _make_worker(self) -> Worker:
        """The runner is made once, as that costs more than an hour of an idle server."""
        if self._runner is None:
            settings = self.settings
            self._runner = stub_runner(
                settings.cache, settings.scheduler, MAX_MODEL_LEN, settings.windows, MODEL
            )
        self._runner.reset()
        meeting = Meeting(self.settings.num_ranks)
        common = self.agenda, self.draw, self._incarnations, self._on_exit
        leader = Worker(*common, self._runner, self.settings.step_s, meeting)
        for _ in range(1, self.settings.num_ranks):
            leader.ranks.append(Rank(*common, meeting, self.settings.step_s))
        self._group = Group([leader, *leader.ranks])
        return leader

    def _make_frontend(self, index: int) -> Frontend:
        frontend = Frontend(self.agenda, self._incarnations, self._on_exit, index)
        if self.settings.weather.is_clear:
            frontend.on_silence = self._check_silence
            frontend.on_end = self._check_end
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

    def _check_end(self, frontend: Frontend, user: User) -> None:
        """Where no frame is lost, all that was computed comes before the error."""
        core, connection = self.engine, frontend.connection
        if core is None or connection is None or user.stream is None or user.outcome == "finished":
            return
        num_outputs = core.failed.get((connection.peer, user.stream.request_id))
        if num_outputs is not None and core.clients.connections.get(connection.peer) is connection:
            assert len(user.stream.token_ids) == num_outputs, f"{user.name} missed its last tokens"

    def _on_ready(self, process: Process) -> None:
        if not process.alive:
            return
        process.ready = process.was_ready = True
        if process.kind != "worker" or all(rank.ready for rank in self._group.ranks):
            self._policy.on_ready(process.kind)
        if isinstance(process, Rank):
            process.wake(self.agenda.now)
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
        self.watch.forget(process)
        if process.kind == "worker":
            self._on_rank_exit(process, exit_code)
            return
        expected = isinstance(process, Frontend) and self._leaves_no_gap(process)
        self.deaths[process.kind] += not expected
        if isinstance(process, EngineCore):
            self._count(process.engine)
            self.engine = None
        elif isinstance(process, Frontend):
            if not expected:
                self.frontends[process.index] = None
            self._add("gaps", process.registry.gaps)
            self.on_frontend_gone(process)
        seen_s = self.draw.uniform(0.0005, 0.005)
        self.agenda.after(seen_s, b"death", partial(self._on_death, process, exit_code, expected))

    def _on_rank_exit(self, process: Process, exit_code: int) -> None:
        group = self._group
        assert process in group.ranks
        group.exit_codes.append(exit_code)
        if process is self.worker:
            self.worker = None
        if len(group.exit_codes) == 1:
            self.deaths["worker"] += 1
        self.agenda.after(self.draw.uniform(0.0005, 0.005), b"death", partial(self._on_rank_death, group))
        for rank in group.ranks:
            if rank.alive and self.draw.random() < 0.5:  # what it waits in fails; or it waits for ever
                self.agenda.after(self.draw.uniform(0, 0.01), b"collective", partial(self._miss, rank))

    def _miss(self, rank: Process) -> None:
        if rank.budget_s:  # in a step
            self._add("missed", 1)
            rank.exit(1)

    def _on_rank_death(self, group: Group) -> None:
        """The supervisor sees it: the rest of the group dies, too, and another is started. What the first
        one died of is not told by whom is seen first."""
        if group.seen:
            return
        group.seen = True
        codes, was_ready = list(group.exit_codes), all(rank.was_ready for rank in group.ranks)
        crashed = all(is_crash(code) for code in codes)
        assert not crashed or is_crash(codes[0]), "a request is blamed for what came from outside"
        for rank in group.ranks:
            self.kill(rank)
        self._follow_death("worker", group.ranks[0].incarnation, codes, crashed=crashed, was_ready=was_ready)

    def _leaves_no_gap(self, frontend: Frontend) -> bool:
        """One that was replaced has gone, or a successor never got ready: another serves there."""
        if frontend in self.retired:
            self.retired.remove(frontend)
            return True
        return self._successors.get(frontend.index) is frontend and bool(self._successors.pop(frontend.index))

    def _on_death(self, process: Process, exit_code: int, expected: bool) -> None:
        """The supervisor sees it."""
        if expected:
            self._tell_death(process.incarnation, exit_code, crashed=is_crash(exit_code))
            return
        index = process.index if isinstance(process, Frontend) else 0
        self._follow_death(
            process.kind,
            process.incarnation,
            [exit_code],
            crashed=is_crash(exit_code),
            was_ready=process.was_ready,
            index=index,
        )

    def _tell_death(self, incarnation: int, exit_code: int, *, crashed: bool) -> None:
        if self.engine is not None:
            self.engine.tell(PeerGone(incarnation, crashed, f"exit code {exit_code}"))

    def _follow_death(
        self,
        kind: Kind,
        incarnation: int,
        exit_codes: list[int],
        *,
        crashed: bool,
        was_ready: bool,
        index: int = 0,
    ) -> None:
        if kind != "engine_core":
            self._tell_death(incarnation, exit_codes[0], crashed=crashed)
        match self._policy.on_death(kind, exit_codes[0], was_ready, self.agenda.now):
            case Restart(delay_s):
                self.agenda.after(delay_s, b"start", partial(self._start, kind, index))
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
        self.watch.look_for(seconds)

    def _hangs(self, process: Process) -> bool:
        """Or another rank does, or is dead, for which it waits in a step."""
        if process.kind != "worker":
            return process.hung
        return any(rank.hung or not rank.alive for rank in self._group.ranks)
