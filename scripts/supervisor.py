"""The parent of all processes: starts them, tells them of each other, restarts what dies, stops them all.

Knows no request, no HTTP and no tensor; what to do about a death is the policy's decision.

    STARTING ──all ready──▶ SERVING ──signal──▶ DRAINING ──frontends gone──▶ QUITTING ──all gone──▶ end
        └──────────────── signal, or a reason to give up ───────────────────────▲
    DRAINING and QUITTING end at a deadline; after QUITTING comes KILLING. Each further signal skips a stage.
    SIGHUP is none of these: while SERVING it replaces the frontends (rolling.py). But see hangup.py.

One thread, one selector: process descriptors, control channels and the signals' wakeup descriptor.
The only clock that ticks is the watch's, four times a second.
"""

import math
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from enum import IntEnum, auto
from functools import partial
from typing import assert_never

from protocol.control import Busy, Drain, EngineAt, Failed, Keep, PeerGone, Phase, Quit, Ready
from protocol.errors import StartupError

from .hangup import Hangup, Meaning
from .liveness import Verdict
from .process import Child, describe_exit
from .process_table import ProcessTable
from .restart_policy import GiveUp, Kind, Restart, RestartPolicy
from .rolling import Roll
from .run_dir import RunDir
from .signals import SignalPipe
from .startup import REPAINT_S, Progress
from .status_line import status_fields, status_line
from .terminal import Terminal
from .units import Death, Unit
from .watch import Watch

DRAIN_SLACK_S = 3.0
"""Frontends end what is left at the drain's timeout, and get this long to say so to their clients."""
QUIT_GRACE_S = 1.5
LOST_GRACE_S = 1.0
"""Between the end of a child's channel, which it may have closed on its way out, and SIGKILL."""
RETIRED_GRACE_S = 30.0
"""The same, of one whose successor serves: nobody waits for it, and an interpreter's end takes seconds on a
busy machine."""


class Stage(IntEnum):
    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()
    QUITTING = auto()
    KILLING = auto()


class Supervisor:
    """Run once, from the main thread."""

    def __init__(
        self,
        units: Sequence[Unit],
        policy: RestartPolicy,
        watch: Watch,
        run_dir: RunDir,
        terminal: Terminal,
        *,
        began: float,
        shutdown_timeout_s: float,
        announce: Callable[[dict[str, str], dict[str, list[int]], str], None],
    ) -> None:
        """`began` is when the start began (time.monotonic).

        `announce` is called once with the workers' facts, the pids and how long the start took.
        """
        self._units = list(units)
        self._table = ProcessTable(self._units, run_dir, terminal)
        self._policy = policy
        self._watch = watch
        self._run_dir = run_dir
        self._terminal = terminal
        self._shutdown_timeout_s = shutdown_timeout_s
        self._announce = announce
        self._selector = selectors.DefaultSelector()
        self._progress = Progress(terminal, began)
        self._engine_at: EngineAt | None = None
        self._incarnations = int(time.time() * 10)
        """Rises over restarts of the server too, so that no endpoint in a kept run folder comes twice.
        Must stay below 2^43: an engine core's epochs begin at its incarnation times 2^20."""
        self._roll = Roll(self._units, self._start, terminal)
        self._stage = Stage.STARTING
        self._stage_deadline: float | None = None
        self._exit_code = 0
        self._failure: tuple[str, str] | None = None

    def run(self) -> int:
        """Serve until told to stop, or until there is no point in going on. The server's exit code."""
        self._hangup = Hangup()
        with SignalPipe() as signals, self._selector:
            self._selector.register(signals, selectors.EVENT_READ, partial(self._on_signals, signals))
            try:
                for unit in self._units:
                    self._start(unit)
                while self._stage < Stage.QUITTING or any(unit.children for unit in self._units):
                    for key, _ in self._selector.select(self._seconds_to_next_deadline()):
                        key.data()
                    self._on_clock(time.monotonic())
            finally:
                self._kill_all()
        if self._failure is not None:
            self._terminal.fail(*self._failure)
        else:
            self._terminal.log("info", "stopped; nothing is left running")
        return self._exit_code

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    def _start(self, unit: Unit) -> None:
        self._incarnations += 1
        unit.start(self._incarnations, time.monotonic())
        for child in unit.children:
            self._selector.register(child.pidfd, selectors.EVENT_READ, partial(self._on_exit, unit, child))
            self._selector.register(
                child.channel, selectors.EVENT_READ, partial(self._on_channel, unit, child)
            )
        if self._engine_at is not None and unit.kind != "engine_core":
            unit.send(self._engine_at)
        self._table.write_pids()

    def _on_channel(self, unit: Unit, child: Child) -> None:
        if child.lost or child not in unit.children:
            return  # the selector's round began before its end was handled
        now = time.monotonic()
        messages, child.lost = child.receive()
        if child.lost:
            self._selector.unregister(child.channel)
            child.kill_at = now + (RETIRED_GRACE_S if unit.retired else LOST_GRACE_S)
        for message in messages:
            match message:
                case Phase():
                    if self._stage is Stage.STARTING:
                        self._progress.on_phase(child.name, message, now)
                case Ready():
                    child.ready = message
                    self._progress.on_done(child.name, now)
                    if unit.is_ready:
                        self._on_ready(unit, now)
                case Failed():
                    child.failed = message
                case Keep():
                    unit.keep(child)
                case Busy():
                    self._terminal.log("info", status_line(message), **status_fields(message))
                case _:
                    assert_never(message)

    def _on_ready(self, unit: Unit, now: float) -> None:
        unit.was_ready = True
        self._policy.on_ready(unit.kind)
        if unit.kind == "engine_core":
            self._introduce_engine_core(unit)
        if unit.replaces is not None:
            if self._stage is Stage.SERVING:
                self._roll.on_ready(unit, unit.replaces)
        elif self._stage is not Stage.STARTING:
            pids = " ".join(str(child.pid) for child in unit.children)
            self._terminal.log(
                "info", f"{unit.name} is ready again after {now - unit.started_at:.1f} s (pid {pids})"
            )
        elif all(other.is_ready for other in self._units):
            self._stage = Stage.SERVING
            leader = self._table.children("worker")[0].ready
            self._announce(leader.facts if leader else {}, self._table.pids(), self._progress.summary(now))

    def _introduce_engine_core(self, unit: Unit) -> None:
        """Tell everyone who is there where the engine core is; later ones are told as they start."""
        self._engine_at = EngineAt(
            incarnation=unit.incarnation,
            clients_endpoint=self._run_dir.clients_endpoint(unit.incarnation),
            workers_endpoint=self._run_dir.workers_endpoint(unit.incarnation),
        )
        self._table.write_endpoint(self._engine_at.clients_endpoint)
        for other in self._units:
            if other is not unit:
                other.send(self._engine_at)

    # ── dying ───────────────────────────────────────────────────────────────────────────────────

    def _on_exit(self, unit: Unit, child: Child) -> None:
        self._on_channel(unit, child)  # its last words
        self._selector.unregister(child.pidfd)
        self._watch.forget(child)
        if not child.lost:
            self._selector.unregister(child.channel)
        unit.children.remove(child)
        exit_code = child.reap()
        told, how = child.failed, describe_exit(exit_code, child.charge)
        unit.deaths.append(
            Death(child.name, child.pid, exit_code, how)
            if told is None
            else Death(child.name, child.pid, told.exit_code, how, told.code, told.message, told.hint)
        )
        if len(unit.deaths) == 1:
            crashed = unit.ended_by_itself(exit_code)
            unit.kill()
            self._on_first_death(unit, PeerGone(unit.incarnation, crashed, how))
        if not unit.children:
            self._on_unit_gone(unit)

    def _on_first_death(self, unit: Unit, news: PeerGone) -> None:
        """The sooner the others know, the sooner they stop waiting for it."""
        if unit.kind == "engine_core":
            self._engine_at = None
        else:
            for other in self._units:
                if other.kind == "engine_core":
                    other.send(news)

    def _on_unit_gone(self, unit: Unit) -> None:
        self._run_dir.forget(unit.incarnation)
        expected = self._stage >= Stage.QUITTING or (
            self._stage is Stage.DRAINING and unit.kind == "frontend"
        )
        if expected:
            if unit.listener is not None:
                unit.listener.close()  # refuse at once what nobody will accept
            return
        death = unit.root_cause()
        what = f"{death.what}: {death.message}" if death.message else death.what
        if unit.is_rolling:
            self._roll.on_gone(unit, what, death.exit_code)
            self._table.write_pids()
            return
        cause = f"{death.name}: {death.message}" if death.message else what
        self._decide(unit, death.exit_code, what, cause, death.hint)

    def _decide(self, unit: Unit, exit_code: int, what: str, cause: str, hint: str) -> None:
        """A unit is gone, or could not be started: `what` happened; `cause` is told if we give up."""
        now = time.monotonic()
        match self._policy.on_death(unit.kind, exit_code, unit.was_ready, now):
            case Restart(delay_s):
                unit.restart_at = now + delay_s
                when = f"in {delay_s:g} s" if delay_s else "now"
                self._terminal.log("warning", f"{what}; starting it again {when}")
            case GiveUp(why):
                self._give_up(f"{cause}; gave up after {why}" if why else cause, hint, exit_code)
            case unreachable:
                assert_never(unreachable)

    def _start_again(self, unit: Unit) -> None:
        """What is lacking (descriptors, memory, room on a disk) may be there the next time."""
        self._watch.count_restart(unit.kind)
        try:
            self._start(unit)
        except StartupError as error:
            self._decide(unit, 1, error.message, error.message, error.hint)

    def _give_up(self, message: str, hint: str, exit_code: int) -> None:
        self._failure = (message, hint)
        self._exit_code = exit_code if exit_code > 0 else 1
        self._advance(Stage.QUITTING)

    # ── stopping ────────────────────────────────────────────────────────────────────────────────

    def _on_signals(self, signals: SignalPipe) -> None:
        for number in signals.read():
            if number is signal.SIGHUP and (meaning := self._hangup.meaning()) is not Meaning.STOP:
                self._on_hangup(meaning)
            elif self._stage is Stage.STARTING:
                self._advance(Stage.QUITTING, number)
            elif self._stage < Stage.KILLING:
                self._advance(Stage(self._stage + 1), number)

    def _on_hangup(self, meaning: Meaning) -> None:
        if meaning is Meaning.GO_ON:
            self._terminal.log("info", "SIGHUP: the terminal is gone; going on, as nohup asks for")
        elif self._stage is Stage.SERVING:
            self._roll.begin()
        else:
            self._terminal.log("warning", f"SIGHUP: ignored while {self._stage.name.lower()}")

    def _advance(self, stage: Stage, number: signal.Signals | None = None) -> None:
        """Enter a stage of stopping."""
        now = time.monotonic()
        if number is not None and self._stage < Stage.DRAINING:
            self._exit_code = 0 if number is signal.SIGTERM else 128 + number
        self._stage = stage
        reason = f"{number.name}: " if number is not None else ""
        running = self._table.children()
        names = ", ".join(f"{child.name} (pid {child.pid})" for child in running)
        match stage:
            case Stage.DRAINING:
                patience = f"open streams have {self._shutdown_timeout_s:g} s to finish"
                self._terminal.log("info", f"{reason}stopping; {patience} (once more: stop now)")
                self._stage_deadline = now + self._shutdown_timeout_s + DRAIN_SLACK_S
                self._call_off_restarts("frontend")
                for unit in self._units:
                    if unit.replaces is not None:
                        unit.kill()  # it serves nobody yet
                    elif unit.kind == "frontend":
                        unit.send(Drain(self._shutdown_timeout_s))
            case Stage.QUITTING:
                self._terminal.log("info", f"{reason}stopping {names or 'what is left'}")
                self._stage_deadline = now + QUIT_GRACE_S
                self._call_off_restarts()
                self._watch.close()
                for child in running:
                    if child.ready is None:
                        child.kill()  # it has nothing to finish, and may be deep in an import
                    else:
                        child.send(Quit())
            case Stage.KILLING:
                self._terminal.log("warning", f"{reason}killing what has not stopped: {names}")
                self._stage_deadline = None
                for child in running:
                    child.kill()
            case _:
                raise AssertionError(f"{stage.name} is not a stage of stopping")

    def _call_off_restarts(self, kind: Kind | None = None) -> None:
        for unit in self._units:
            if kind in (None, unit.kind):
                unit.restart_at = None

    def _kill_all(self) -> None:
        """Whatever went wrong: no process outlives `run`."""
        for unit in self._units:
            unit.kill()
            for child in unit.children:
                child.reap()
            unit.children.clear()
            unit.let_go()

    # ── time ────────────────────────────────────────────────────────────────────────────────────

    def _seconds_to_next_deadline(self) -> float | None:
        """None when nothing is due: sleep until something happens."""
        now = time.monotonic()
        deadlines = [self._watch.next_look]
        deadlines += [unit.restart_at for unit in self._units if unit.restart_at is not None]
        deadlines += [child.kill_at for child in self._table.children() if child.kill_at is not None]
        if self._stage_deadline is not None:
            deadlines.append(self._stage_deadline)
        if self._stage is Stage.STARTING and self._terminal.rewrites:
            deadlines.append(now + REPAINT_S)
        soonest = min(deadlines)
        return max(soonest - now, 0.0) if soonest < math.inf else None

    def _on_clock(self, now: float) -> None:
        for child in self._table.children():
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = None
                if child.peek() is None:  # else its end is about to be handled
                    child.kill()
                    child.overdue = True
        if now >= self._watch.next_look:
            self._look(now)
        if self._stage is Stage.STARTING:
            self._progress.repaint(now)
        for unit in self._units:
            if unit.restart_at is not None and now >= unit.restart_at:
                self._start_again(unit)
        if self._stage is Stage.DRAINING and not self._table.children("frontend"):
            self._advance(Stage.QUITTING)
        elif self._stage_deadline is not None and now >= self._stage_deadline:
            self._advance(Stage(self._stage + 1))

    def _look(self, now: float) -> None:
        """Slow is worth a line; hung or stopped for good is as good as dead."""
        suspects = [child for child in self._table.children() if not child.charge]
        for child, verdict, stall_s in self._watch.look(suspects, now):
            if verdict is Verdict.SLOW:
                self._terminal.log("warning", f"{child.name} has been at one thing for {stall_s:.1f} s")
                child.dump_stacks()
                continue
            stopped = verdict is Verdict.STOPPED
            what = "is stopped and was not continued" if stopped else f"made no progress for {stall_s:.1f} s"
            self._terminal.log("warning", f"{child.name} (pid {child.pid}) {what}; killing it")
            child.charge = f"it {what}"
            child.kill()
