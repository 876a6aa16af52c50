"""Recovery: new epochs, in which every request starts over with the ids it has, and who is to blame for them.

    workers are ready                        ┐
    they died · a step failed ──▶ accused ──▶├──▶ all KV is forgotten; who ran waits, suspects apart
    a result was lost                        ┘

Knows neither the loop nor what clients are told of it.
"""

from protocol.config import EngineCoreConfig
from protocol.errors import InternalError, RequestCrashedWorker, TernError, Unavailable
from protocol.messages import EngineFacts
from protocol.sockets import fingerprint
from protocol.steps import Reset, StepFailed, StepResult, WorkerReady

from . import crash_report
from .desk import Desk
from .journal import Journal, NoJournal, Opened
from .meter import Meter
from .observer import Observer
from .request import Request, State
from .scheduler import Scheduler
from .worker_group import WorkerGroup

OUT_OF_MEMORY = "out_of_memory"
"""Code of a StepFailed for which nobody is to blame: the same requests run, fewer at once."""


class Recovery:
    """Makes the scheduler when the first workers are ready. Nothing else here is called before."""

    def __init__(
        self,
        config: EngineCoreConfig,
        workers: WorkerGroup,
        desk: Desk,
        meter: Meter,
        observer: Observer,
        journal: Journal | NoJournal,
    ) -> None:
        self._config = config
        self._workers = workers
        self._desk = desk
        self._meter = meter
        self._observer = observer
        self._journal = journal

    @property
    def _scheduler(self) -> Scheduler:
        assert self._desk.scheduler is not None
        return self._desk.scheduler

    def on_ready(self, ready: WorkerReady) -> None:
        """A group is there, empty."""
        if self._desk.scheduler is None:
            self._desk.scheduler = Scheduler(self._config.scheduler, self._config.cache, ready.facts)
        opened = Opened(fingerprint(), ready.model_fingerprint, ready.facts)
        self._journal.begin_epoch(opened, Reset(self._workers.epoch))
        self._start_over(ready.facts)
        self._observer.note_workers()

    def on_lost(self, crashed: bool, cause: str) -> None:
        """The group is dead. `crashed`: by itself."""
        scheduler = self._scheduler
        self._observer.note("workers_lost", scheduler.num_running + scheduler.num_waiting, cause=cause)
        if scheduler.in_flight and self._config.crash_dir:
            report = crash_report.report_of(cause, self._workers.epoch, scheduler.facts, scheduler.in_flight)
            crash_report.write(self._config.crash_dir, report)
        involved = list({request: None for step in scheduler.in_flight for request in step.requests})
        message = "a worker died of this request, and again when it ran alone"
        self._accuse(involved, crashed, RequestCrashedWorker(message))
        self._start_over(scheduler.facts)

    def on_step_failed(self, failed: StepFailed) -> None:
        """The workers' batch is lost, not the requests."""
        scheduler = self._scheduler
        self._journal.write(failed)
        self._observer.note("step_failed", scheduler.num_running, cause=failed.code)
        memory = failed.code == OUT_OF_MEMORY
        if memory and scheduler.num_running > 1:
            scheduler.run_fewer()
        else:
            steps = [step for step in scheduler.in_flight if step.plan.step == failed.step]
            requests = [request for step in steps for request in step.requests_in(failed.slots)]
            what = "the device's memory does not suffice for" if memory else "the model failed on"
            message = f"{what} this request, also when it ran alone"
            self._accuse(requests, True, InternalError(message))
        self._begin_epoch()

    def on_unexpected(self, result: StepResult) -> None:
        """Not of the oldest step in flight. A later one's: a result was lost, and with it the common view."""
        self._workers.stale_messages += 1
        if any(step.plan.step == result.step for step in self._scheduler.in_flight):
            self._begin_epoch()

    def _accuse(self, requests: list[Request], by_itself: bool, error: TernError) -> None:
        """A step with these went wrong. To be called before the reset."""
        there = [request for request in requests if request.state is State.RUNNING]
        culprit = self._scheduler.suspects.accuse(there, by_itself=by_itself)
        if culprit is not None:
            self._desk.crashed_requests += 1
            self._observer.note("request_crashed", 1, cause=error.code)
            self._desk.fail(culprit, error, trusted=False)

    def _begin_epoch(self) -> None:
        """The workers live, and forget everything."""
        self._workers.begin_epoch()
        self._start_over(self._scheduler.facts)
        self._journal.go_on(Reset(self._workers.epoch))

    def _start_over(self, facts: EngineFacts) -> None:
        scheduler = self._scheduler
        scheduler.reset(self._workers.epoch, facts)
        self._meter.forget_steps()
        for request in (*scheduler.waiting, *scheduler.suspects):
            if request.max_total_tokens > facts.max_model_len:
                message = f"the model now holds {facts.max_model_len} tokens, fewer than this request needs"
                self._desk.fail(request, Unavailable(message))
