"""A one-thread world: the real scheduler, the hash model, one worker, a clock that only the test moves.

Every random choice comes from one seed. `run` drives it until everything has ended, and asserts the
invariants after each event; what each request got is then compared with the hash model run alone.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_core.clients import Client
from engine_core.finishing import deliver
from engine_core.invariants import check, touched
from engine_core.request import Request, State
from engine_core.scheduler import Scheduler
from protocol import columns
from protocol.config import WorkerConfig
from protocol.grammar import Follower
from protocol.kv_groups import NO_BLOCK
from protocol.messages import Outputs, Submit
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan, StepResult
from worker.kv_layout import Window
from worker.stub import StubRunner

ADAPTERS = ("blue", "red")
"""Of every hash model here."""


def stub_runner(
    cache: CacheOptions,
    scheduler: SchedulerOptions,
    max_model_len: int = 0,
    windows: Sequence[Window] = (None,),
    model: str = "",
) -> StubRunner:
    """A hash model with layers of these windows, and a vocabulary of 512 or that of the model in a folder."""
    config = WorkerConfig(
        incarnation=1,
        rank=0,
        group_dir="",
        model=ModelOptions(
            model=model, max_model_len=max_model_len, lora=tuple(f"{name}=nowhere" for name in ADAPTERS)
        ),
        cache=cache,
        scheduler=scheduler,
        parallel=ParallelOptions(worker="stub"),
    )
    return StubRunner(config, windows)


def alone(
    submit: Submit,
    max_model_len: int,
    windows: Sequence[Window] = (None,),
    model: str = "",
    follower: Follower | None = None,
) -> list[int]:
    """What the hash model answers to this request when nothing else exists, and no block is ever released.

    `follower` is at the beginning of the answer's grammar.
    """
    runner = stub_runner(CacheOptions(block_size=64, num_kv_blocks=64), SchedulerOptions(), 0, windows, model)
    prompt, sampling = columns.unpack_ids(submit.prompt_token_ids), submit.sampling
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else runner.eos_token_ids)}
    scored = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    most = min(sampling.max_tokens, max_model_len - len(prompt))
    outputs: list[int] = []
    known = 0
    """Tokens that the runner has computed, or samples next."""

    def ended() -> bool:
        return len(outputs) >= most or bool(outputs and outputs[-1] in stops)

    while not ended():
        forced = follower.take_forced() if follower is not None and not scored else ()
        for token in forced:
            if not ended():
                outputs.append(token)
        if forced:
            continue
        mask = follower.mask() if follower is not None else b""
        plan = _plan_alone(runner, submit, outputs, known == len(prompt) + len(outputs), mask)
        outputs += columns.unpack_ids(runner.execute(plan).token_ids)
        known = len(prompt) + len(outputs)
        if follower is not None and not ended():
            follower.take(outputs[-1:])
    return outputs


def vector_alone(submit: Submit, windows: Sequence[Window] = (None,), model: str = "") -> bytes:
    """What the hash model makes of this prompt when nothing else exists."""
    runner = stub_runner(CacheOptions(block_size=64, num_kv_blocks=64), SchedulerOptions(), 0, windows, model)
    ((_, vector),) = runner.execute(_plan_alone(runner, submit, [], False, b"")).embeddings
    return vector


def _plan_alone(
    runner: StubRunner, submit: Submit, outputs: list[int], goes_on: bool, mask: bytes
) -> StepPlan:
    """The next token, or all that is known and then the next token."""
    prompt = columns.unpack_ids(submit.prompt_token_ids)
    blocks = columns.pack_ids(range(64 // len(runner.groups) * len(runner.groups)))
    token_ids = columns.pack_ids([*prompt, *outputs])
    start = SequenceStart(
        0, token_ids, len(prompt), 0, blocks, submit.sampling, submit.adapter, embed=submit.embed
    )
    return StepPlan(
        epoch=0,
        step=0,
        scheduled_slots=columns.pack_ids([0]),
        scheduled_counts=columns.pack_ids([1 if goes_on else len(prompt) + len(outputs)]),
        released=columns.pack_ids([] if goes_on else runner.sequences),
        started=() if goes_on else (start,),
        masked_rows=columns.pack_ids([0] if mask else []),
        masks=mask,
    )


@dataclass
class World:
    """The scheduler and its worker, with events on a simulated clock."""

    seed: int
    options: SchedulerOptions
    cache: CacheOptions
    max_model_len: int = 128
    crash_every: int = 0
    """Mean number of steps between worker crashes; 0: none."""
    depth: int = 2
    windows: Sequence[Window] = (None,)
    now: float = 0.0
    results: list[tuple[float, int, StepResult]] = field(default_factory=list)
    submits: dict[int, Submit] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    aborted: set[int] = field(default_factory=set)
    steps: int = 0
    most_held: int = 0
    """Blocks of one request at once."""
    touched: dict[int, set[int]] = field(default_factory=dict)
    """By step in flight: the blocks that it reads or writes."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.runner = stub_runner(self.cache, self.options, self.max_model_len, self.windows)
        self.scheduler = Scheduler(self.options, self.cache, self.runner.facts)
        self.epoch = 1
        self.scheduler.reset(self.epoch, self.runner.facts)
        self.client = Client(b"peer", "simulator", 0)

    def submit(self) -> None:
        """A new request: short alphabets and few shared heads, so that prefixes are often the same."""
        draw = self.random
        head = [token for _ in range(draw.randrange(4)) for token in [draw.randrange(2)] * 16]
        tail = [draw.randrange(512) for _ in range(draw.randrange(0 if head else 1, 24))]
        prompt = (head + tail)[: self.max_model_len - 1]
        sampling = SamplingParams(
            max_tokens=draw.choice([1, 2, 7, 30, 200]),
            temperature=draw.choice([0.0, 1.0]),
            seed=draw.randrange(100),
            ignore_eos=draw.random() < 0.5,
            stop_token_ids=tuple(draw.sample(range(512), draw.choice([0, 3]))),
        )
        request_id = len(self.requests)
        submit = Submit(
            request_id,
            columns.pack_ids(prompt),
            sampling,
            priority=draw.choice([0, 0, 1]),
            tenant=draw.choice(["a", "b"]),
            adapter=draw.choice(["", "", *ADAPTERS]),
        )
        request = Request(self.client, submit, self.runner.facts, arrival=request_id)
        self.submits[request_id], self.requests[request_id] = submit, request
        self.scheduler.add(request)

    def abort(self) -> None:
        """End a random live request."""
        live = [request for request in self.requests.values() if request.state is not State.ENDED]
        if live:
            request = self.random.choice(live)
            self.aborted.add(request.request_id)
            self.scheduler.end(request)

    def crash(self) -> None:
        """The worker loses all it had, and every result that is on its way."""
        self.results.clear()
        self.epoch += 1
        self.runner.reset()
        self.scheduler.reset(self.epoch, self.runner.facts)

    def dispatch(self) -> None:
        """Plan as far ahead as allowed; the worker executes at once, the result arrives later."""
        while len(self.scheduler.in_flight) < self.depth:
            planned = self.scheduler.plan(self.random.choice([1, 16, 10_000]))
            if planned is None:
                break
            self.steps += 1
            self.touched[planned.plan.step] = touched(self.scheduler, planned)
            assert len(set(planned.requests)) == len(planned.requests), "a request twice in one step"
            last = self.results[-1][0] if self.results else self.now
            arrival = max(self.now, last) + self.random.expovariate(100)
            result = self.runner.execute(planned.plan)
            heapq.heappush(self.results, (arrival, planned.plan.step, result))

    def settle(self) -> None:
        """Move the clock to the next result and deliver it."""
        self.now, step, result = heapq.heappop(self.results)
        planned = self.scheduler.settle(step)
        assert planned is not None
        for request in deliver(planned, result).finished:
            self.scheduler.end(request)

    def run(self, num_requests: int, abort_share: float = 0.1) -> None:
        """Until `num_requests` requests have come and all have ended."""
        while True:
            if len(self.requests) < num_requests and self.random.random() < 0.4:
                self.submit()
                if self.random.random() < abort_share:
                    self.abort()
            if self.crash_every and self.random.random() < 1 / self.crash_every:
                self.crash()
            self.dispatch()
            self.check()
            if self.results and (len(self.scheduler.in_flight) == self.depth or self.random.random() < 0.5):
                self.settle()
                self.check()
            if len(self.requests) == num_requests and not self.results:
                self.dispatch()
                if not self.results:
                    break
        self.check_end()

    def check(self) -> None:
        """What must hold after every event."""
        scheduler = self.scheduler
        check(scheduler)
        for step in scheduler.in_flight:
            used = self.touched[step.plan.step]
            assert used.isdisjoint(scheduler.kv.pool.free), "a block is free while a step uses it"
        for request in scheduler.running:
            held = sum(table.count(NO_BLOCK) for table in request.block_tables)
            held = request.num_blocks * len(request.block_tables) - held
            self.most_held = max(self.most_held, held)

    def check_end(self) -> None:
        """Everything has ended once, everyone got what is right, and every block is free."""
        assert all(request.state is State.ENDED for request in self.requests.values())
        pool = self.scheduler.kv.pool
        assert pool.num_free + len({block for _, block in pool.fenced}) == pool.num_blocks
        assert not any(pool.references)
        for request_id, request in self.requests.items():
            outputs = list(request.token_ids[request.num_prompt_tokens :])
            expected = alone(self.submits[request_id], self.max_model_len, self.windows)
            if request_id in self.aborted:
                expected = expected[: len(outputs)]
            assert outputs == expected, f"request {request_id} of seed {self.seed}"
        self.check_columns()

    def check_columns(self) -> None:
        """What the client was sent: indexes contiguous, one finish each, tokens equal to the request's."""
        (outputs,) = self.client.take_outputs(0, 0)
        assert isinstance(outputs, Outputs)
        got: dict[int, list[int]] = {}
        ended: set[int] = set()
        for request_id, index, token, finish in zip(
            columns.unpack(columns.UINT64, outputs.request_ids),
            columns.unpack(columns.UINT32, outputs.indexes),
            columns.unpack_ids(outputs.token_ids),
            outputs.finishes,
            strict=True,
        ):
            assert request_id not in ended, "a row after the last"
            assert index == len(got.setdefault(request_id, [])), "indexes are not contiguous"
            got[request_id].append(token)
            if finish:
                ended.add(request_id)
        assert ended == set(self.requests) - self.aborted
        for request_id, tokens in got.items():
            request = self.requests[request_id]
            assert tokens == list(request.token_ids[request.num_prompt_tokens :])
