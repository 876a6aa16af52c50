"""An engine core as a worker sees it, and workers in threads and as processes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import zmq

from protocol import columns
from protocol.config import WorkerConfig
from protocol.control import (
    Channel,
    EngineAt,
    Quit,
    Start,
    SupervisorChannel,
    ToChild,
    ToSupervisor,
    channel_pair,
)
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.progress import Progress
from protocol.sampling import SamplingParams
from protocol.sockets import Router
from protocol.steps import EngineToWorker, Reset, SequenceStart, StepPlan, WorkerReady, WorkerToEngine
from worker.worker import Runner, Worker

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
GREEDY = SamplingParams(temperature=0)


def stub_config(folder: Path, *, rank: int = 0, size: int = 1) -> WorkerConfig:
    return WorkerConfig(
        incarnation=1,
        rank=rank,
        group_dir=str(folder),
        model=ModelOptions(max_model_len=256),
        cache=CacheOptions(block_size=4, num_kv_blocks=64),
        scheduler=SchedulerOptions(max_num_seqs=8),
        parallel=ParallelOptions(worker="stub", tensor_parallel_size=size),
    )


class Core:
    """Binds, and is the other end of the leader's link."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.link: Router[WorkerToEngine, EngineToWorker] = Router(self.context, WorkerToEngine)
        self.endpoint = f"ipc://{folder}/workers"
        self.link.bind(self.endpoint)
        self.peer = b""
        self._arrived: list[WorkerToEngine] = []

    def next(self) -> WorkerToEngine:
        """The next message of the worker."""
        if not self._arrived:
            assert self.link.socket.poll(int(DEADLINE_S * 1000)), "the worker says nothing"
            for peer, message in self.link.drain():
                self.peer = peer
                self._arrived.append(message)
        return self._arrived.pop(0)

    def attach(self, channel: SupervisorChannel, epoch: int = 1) -> WorkerReady:
        """Introduce the worker, and begin an epoch."""
        channel.send(EngineAt(1, "", self.endpoint))
        ready = self.next()
        assert isinstance(ready, WorkerReady)
        self.send(Reset(epoch))
        return ready

    def send(self, message: EngineToWorker) -> None:
        assert self.link.send(self.peer, message)

    def send_bytes(self, body: bytes) -> None:
        self.link.socket.send_multipart((self.peer, body))

    def close(self) -> None:
        self.context.destroy(linger=0)


class WorkerThread:
    """A Worker that runs until it is told to quit or fails."""

    def __init__(self, config: WorkerConfig, runner: Runner, progress: Progress | None = None) -> None:
        self.channel, theirs = channel_pair()
        self.worker = Worker(config, Channel(theirs, ToChild), runner, progress)
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:
            self.error = error

    def ended(self) -> Exception | None:
        """Wait for its end: what it raised."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.channel.send(Quit())
        self.ended()
        self.channel.close()
        self.worker.channel.close()
        self.worker.context.destroy(linger=0)


class WorkerProcess:
    """`python -m worker`, and its supervisor's end of the channel."""

    def __init__(self, config: WorkerConfig, *arguments: str, environ: Mapping[str, str], fd: int = -1):
        self.channel, theirs = channel_pair()
        control = ["--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TERN_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", *arguments, *control],
            cwd=ROOT,
            env={**kept, **environ},
            pass_fds=(theirs.fileno(), *([fd] if fd >= 0 else [])),
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.channel.send(Start(msgspec.structs.replace(config, progress_fd=fd)))

    def next(self, kind: type[ToSupervisor]) -> ToSupervisor:
        """The next message of this kind."""
        self.channel.socket.settimeout(DEADLINE_S)
        while True:
            message = self.channel.receive(wait=True)
            if isinstance(message, kind):
                return message

    def wait(self) -> tuple[int, str]:
        """(exit code, what it wrote to standard error)"""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.channel.close()


def start_plan(
    step: int, prompt: Sequence[int], *, slot: int = 0, epoch: int = 1, sampling: SamplingParams = GREEDY
) -> StepPlan:
    """A sequence enters and its whole prompt is computed; each slot has eight blocks of its own."""
    start = SequenceStart(
        slot=slot,
        token_ids=columns.pack_ids(prompt),
        num_prompt_tokens=len(prompt),
        num_computed_tokens=0,
        block_tables=columns.pack_ids(range(8 * slot, 8 * slot + 8)),
        sampling=sampling,
    )
    count = columns.pack_ids([len(prompt)])
    return StepPlan(epoch, step, columns.pack_ids([slot]), count, started=(start,))


def next_plan(step: int, *slots: int, epoch: int = 1) -> StepPlan:
    """One more token of each of these slots."""
    return StepPlan(epoch, step, columns.pack_ids(slots or (0,)), columns.pack_ids([1] * len(slots or (0,))))


def wait_until(condition: Callable[[], object]) -> None:
    """Poll for what has no descriptor."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
