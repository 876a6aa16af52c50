"""A real engine core and a real stub worker, each in a thread, over real sockets in a temporary folder."""

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine_core.engine import Engine
from engine_core.process import EngineProcess
from protocol.client import EngineClient
from protocol.config import EngineCoreConfig, WorkerConfig
from protocol.control import Channel, EngineAt, PeerGone, Quit, SupervisorChannel, ToChild, channel_pair
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from worker.stub import StubRunner
from worker.worker import Worker


@dataclass
class MiniStack:
    """Starts and stops engine cores and stub workers the way a supervisor would."""

    run_dir: Path
    cache: CacheOptions = field(default_factory=lambda: CacheOptions(block_size=16, num_kv_blocks=256))
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    max_model_len: int = 512
    incarnations: int = 0
    engine_at: EngineAt | None = None
    engine: Engine | None = None
    channels: list[SupervisorChannel] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    engine_channel: SupervisorChannel | None = None
    worker_channel: SupervisorChannel | None = None
    worker_incarnation: int = 0

    def _launch(self, run: threading.Thread, channel: SupervisorChannel) -> None:
        run.start()
        self.threads.append(run)
        self.channels.append(channel)

    def start_engine(self) -> EngineAt:
        self.incarnations += 1
        number = self.incarnations
        clients, workers = f"ipc://{self.run_dir}/c{number}", f"ipc://{self.run_dir}/w{number}"
        ours, theirs = channel_pair()
        config = EngineCoreConfig(
            incarnation=number,
            clients_endpoint=clients,
            workers_endpoint=workers,
            cache=self.cache,
            scheduler=self.scheduler,
        )
        process = EngineProcess(config, Channel(theirs, ToChild))
        self.engine = process.engine
        self._launch(threading.Thread(target=process.run), ours)
        self.engine_channel = ours
        self.engine_at = EngineAt(number, clients, workers)
        if self.worker_channel is not None:
            self.worker_channel.send(self.engine_at)
        return self.engine_at

    def start_worker(self) -> None:
        assert self.engine_at is not None
        self.incarnations += 1
        self.worker_incarnation = self.incarnations
        config = WorkerConfig(
            incarnation=self.incarnations,
            rank=0,
            group_dir=str(self.run_dir),
            model=ModelOptions(max_model_len=self.max_model_len),
            cache=self.cache,
            scheduler=self.scheduler,
            parallel=ParallelOptions(worker="stub"),
        )
        ours, theirs = channel_pair()
        worker = Worker(config, Channel(theirs, ToChild), StubRunner(config))
        self._launch(threading.Thread(target=worker.run), ours)
        self.worker_channel = ours
        ours.send(self.engine_at)

    def stop_engine(self) -> None:
        assert self.engine_channel is not None
        self.engine_channel.send(Quit())

    def stop_worker(self) -> None:
        assert self.worker_channel is not None
        assert self.engine_channel is not None
        self.worker_channel.send(Quit())
        self.engine_channel.send(PeerGone(self.worker_incarnation))

    def stop(self) -> None:
        for channel in self.channels:
            channel.send(Quit())
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        for channel in self.channels:
            channel.close()


@pytest.fixture
def mini_stack(tmp_path: Path) -> Iterator[MiniStack]:
    stack = MiniStack(tmp_path)
    yield stack
    stack.stop()


@pytest.fixture
async def client(mini_stack: MiniStack) -> AsyncIterator[EngineClient]:
    """A client of a started mini stack."""
    engine_at = mini_stack.start_engine()
    mini_stack.start_worker()
    client = await EngineClient.attach(engine_at.clients_endpoint)
    yield client
    await client.close()
