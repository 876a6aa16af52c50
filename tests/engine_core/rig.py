"""The real Engine and the hash model in one thread: no sockets, and a clock that only the test moves."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from engine_core.engine import Engine
from engine_core.grammar import Hands
from engine_core.invariants import check
from protocol import columns
from protocol.config import EngineCoreConfig, WorkerConfig
from protocol.messages import PROTOCOL_VERSION, ClientMessage, EngineMessage
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.registry import Registry
from protocol.sampling import SamplingParams
from protocol.sockets import fingerprint
from protocol.steps import EngineToWorker, Reset, StepFailed, StepMasks, StepPlan, WorkerReady, WorkerToEngine
from protocol.stream import Parting, TokenStream
from tests.simulation.simulator import ADAPTERS
from worker.stub import StubRunner


class Wire:
    """One link: what has arrived and is not yet taken, what was sent and is not yet looked at."""

    dropped_frames = 0

    def __init__(self) -> None:
        self.arrived: list[tuple[bytes, Any]] = []
        self.sent: list[tuple[bytes, Any]] = []
        self.gone: set[bytes] = set()
        """Peers that nothing reaches any more."""

    def drain(self) -> list[tuple[bytes, Any]]:
        taken, self.arrived = self.arrived, []
        return taken

    def send(self, peer: bytes, message: Any) -> bool:
        if peer in self.gone:
            return False
        self.sent.append((peer, message))
        return True

    def taken(self) -> list[tuple[bytes, Any]]:
        sent, self.sent = self.sent, []
        return sent


class Inline:
    """Hands that work at once."""

    def now(self) -> float:
        return 0.0

    def worked_s(self) -> float:
        return 0.0

    def do(self, work: Callable[[], None]) -> None:
        work()


class Rig:
    """One engine core, one worker, and clients by name."""

    def __init__(
        self, *, model: str = "", max_model_len: int = 512, hands: Hands | None = None, **config: Any
    ) -> None:
        """`model`: the folder of a config.json and a tokenizer.json; grammars need one."""
        self.now = 1000.0
        cache = config.pop("cache", CacheOptions(block_size=16, num_kv_blocks=256))
        scheduler = config.pop("scheduler", SchedulerOptions())
        self.clients_wire, self.workers_wire = Wire(), Wire()
        engine_config = EngineCoreConfig(
            incarnation=1,
            clients_endpoint="",
            workers_endpoint="",
            cache=cache,
            scheduler=scheduler,
            tokenizer=model,
            **config,
        )
        self.engine = Engine(
            engine_config, self.clients_wire, self.workers_wire, lambda: self.now, hands or Inline()
        )
        worker_config = WorkerConfig(
            incarnation=7,
            rank=0,
            group_dir="",
            model=ModelOptions(
                model=model, max_model_len=max_model_len, lora=tuple(f"{name}=nowhere" for name in ADAPTERS)
            ),
            cache=cache,
            scheduler=scheduler,
            parallel=ParallelOptions(worker="stub"),
        )
        self.runner = StubRunner(worker_config)
        self.epoch = -1
        self.worker_incarnation = 7
        self.poison: dict[int, str] = {}
        """Token of a prompt → what happens to a step with such a sequence: "die", or a StepFailed's code."""
        self.deaths = 0
        self.plans: list[StepPlan] = []
        self.maskless: StepPlan | None = None
        """A plan whose masks follow."""
        self.registries: dict[bytes, Registry] = {}
        self.history: list[tuple[bytes, EngineMessage]] = []
        """All that clients were sent."""
        self.start_worker()

    # ── the worker ──────────────────────────────────────────────────────────────────────────────

    def start_worker(self) -> None:
        runner = self.runner
        ready = WorkerReady(
            PROTOCOL_VERSION,
            fingerprint(),
            0,
            self.worker_incarnation,
            runner.model_fingerprint,
            runner.facts,
        )
        self.workers_wire.arrived.append((b"worker", ready))

    def kill_worker(self, *, crashed: bool = False) -> None:
        """What it was sent and what it answered is lost; another one comes."""
        self.workers_wire.taken()
        self.workers_wire.drain()
        self.epoch = -1
        self.deaths += 1
        self.engine.on_peer_gone(self.worker_incarnation, crashed=crashed, cause="was killed")
        self.worker_incarnation += 1
        self.start_worker()

    def _work(self, message: EngineToWorker) -> WorkerToEngine | None:
        match message:
            case Reset():
                self.runner.reset()
                self.epoch, self.maskless = message.epoch, None
            case StepPlan() if message.epoch == self.epoch and message.masked_rows and not message.masks:
                self.maskless = message
            case StepMasks() if message.epoch == self.epoch:
                assert self.maskless is not None
                assert self.maskless.step == message.step
                complete, self.maskless = structs.replace(self.maskless, masks=message.masks), None
                return self._work(complete)
            case StepPlan() if message.epoch == self.epoch:
                assert self.maskless is None
                self.plans.append(message)
                result = self.runner.execute(message)
                bad = [
                    fault
                    for slot in columns.unpack_ids(message.scheduled_slots)
                    for fault in self._faults(slot)
                ]
                if "die" in bad:
                    raise ChildProcessError
                if bad:
                    self.epoch = -1
                    return StepFailed(message.epoch, message.step, message.scheduled_slots, bad[0], "")
                return result
            case _:
                pass
        return None

    def _faults(self, slot: int) -> list[str]:
        sequence = self.runner.sequences[slot]
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        return [fault for token, fault in self.poison.items() if token in prompt]

    # ── clients ─────────────────────────────────────────────────────────────────────────────────

    def client(self, name: bytes, incarnation: int = 0) -> Registry:
        """Attached once the rig has turned."""
        registry = Registry(
            name.decode(), incarnation, lambda stream, parting: self.close(name, stream, parting)
        )
        self.registries[name] = registry
        self.say(name, registry.attach(self.now))
        self.turn()
        return registry

    def say(self, name: bytes, messages: list[ClientMessage]) -> None:
        self.clients_wire.arrived += [(name, message) for message in messages]

    def submit(
        self, name: bytes, prompt: Sequence[int], sampling: SamplingParams, **options: Any
    ) -> TokenStream:
        stream, messages = self.registries[name].submit(prompt, sampling, self.now, **options)
        self.say(name, messages)
        return stream

    def close(self, name: bytes, stream: TokenStream, parting: Parting) -> None:
        self.say(name, self.registries[name].close(stream, parting))

    # ── time ────────────────────────────────────────────────────────────────────────────────────

    def turn(self) -> bool:
        """One turn of the engine core and of everyone else. False: nothing happens any more."""
        engine = self.engine
        before = bool(self.clients_wire.arrived or self.workers_wire.arrived)
        engine.collect()
        engine.receive()
        engine.advance()
        if engine.scheduler is not None:
            check(engine.scheduler)
        for peer, message in self.clients_wire.taken():
            self.history.append((peer, message))
            self._deliver(peer, message)
        work = self.workers_wire.taken()
        for _, order in work:
            try:
                answer = self._work(order)
            except ChildProcessError:
                self.kill_worker(crashed=True)
                break
            if answer is not None:
                self.workers_wire.arrived.append((b"worker", answer))
        return before or bool(work) or bool(self.clients_wire.arrived or self.workers_wire.arrived)

    def _deliver(self, peer: bytes, message: EngineMessage) -> None:
        registry = self.registries.get(peer)
        if registry is not None:
            self.say(peer, registry.handle(message, self.now))

    def settle(self) -> None:
        """Until nothing happens any more."""
        while self.turn():
            pass

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.settle()
