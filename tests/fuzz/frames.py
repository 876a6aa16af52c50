"""Frames that nobody would send: valid ones, mutated. Every choice comes from one generator.

Knows what msgpack looks like and one message of each kind; refuses to know what any of them does.
"""

import random
from typing import Any

import msgspec

from protocol import columns, control
from protocol.config import EngineCoreConfig, FrontendConfig, WorkerConfig
from protocol.frontend_options import FrontendOptions
from protocol.messages import (
    Abort,
    Attach,
    Attached,
    AttachRefused,
    ClientMessage,
    Control,
    ControlResult,
    EngineFacts,
    EngineMessage,
    EngineStats,
    Leave,
    LogprobBlock,
    Outputs,
    Ping,
    Pong,
    PromptLogprobs,
    Refused,
    Submit,
    Suspended,
)
from protocol.observation import Event, Inspect, RequestView, Snapshot, Stage
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import (
    EngineToWorker,
    Profile,
    Reset,
    SequenceStart,
    StepFailed,
    StepMasks,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerReply,
    WorkerToEngine,
)

IDS = columns.pack_ids([1, 2, 3])
SAMPLING = SamplingParams(
    max_tokens=9,
    top_p=0.5,
    seed=7,
    stop_token_ids=(1, 2),
    logit_bias=((3, -1.5),),
    logprobs=2,
    allowed_token_ids=(1, 2, 3),
    bad_words=((1,), (2, 3)),
    logprob_token_ids=(4,),
)
FACTS = EngineFacts("m", 512, 64, 16, 256, (0,), 8)
VIEW = RequestView(5, Stage.DECODING, 9, 3, 64, 11, 0, 1)
BLOCK = LogprobBlock(columns.pack(columns.UINT32, [0]), 1, bytes(4), bytes(4), bytes(4))
MODEL, CACHE, SCHEDULER = ModelOptions(), CacheOptions(), SchedulerOptions()
CONFIGS: list[EngineCoreConfig | FrontendConfig | WorkerConfig] = [
    EngineCoreConfig(
        incarnation=1, clients_endpoint="c", workers_endpoint="w", cache=CACHE, scheduler=SCHEDULER
    ),
    FrontendConfig(
        incarnation=1, index=0, listen_fd=3, model=MODEL, frontend=FrontendOptions(), metrics_dir=""
    ),
    WorkerConfig(
        incarnation=1,
        rank=0,
        group_dir="g",
        model=MODEL,
        cache=CACHE,
        scheduler=SCHEDULER,
        parallel=ParallelOptions(),
    ),
]

SAMPLES: dict[str, tuple[Any, list[Any]]] = {
    "client to engine core": (
        ClientMessage,
        [
            Attach(2, "0123456789abcdef", "fuzz"),
            Submit(1, IDS, SAMPLING, IDS, 5, 1.5, "tenant", "salt", "", "", "key", "digest"),
            Abort((1, 2, 3)),
            Leave((4, 1 << 40)),
            Ping(1),
            Control(2, "reset_prefix_cache"),
            Inspect(3),
        ],
    ),
    "engine core to client": (
        EngineMessage,
        [
            Attached(2, "0123456789abcdef", 1 << 20, FACTS),
            Suspended("restarting"),
            Outputs(
                1,
                2,
                columns.pack(columns.UINT64, [1, 2]),
                columns.pack(columns.UINT32, [0, 0]),
                columns.pack_ids([5, -1]),
                bytes([0, 3]),
                BLOCK,
                ((1, 16),),
                (PromptLogprobs(1, 1, BLOCK),),
            ),
            Refused(3, "overloaded", "try again later", True, "prompt", 1.5),
            AttachRefused(1, "x", "install the same version"),
            Pong(1, 1 << 20, EngineStats(1, 2, 3)),
            ControlResult(2, True, "done"),
            Snapshot(3, 1 << 20, (VIEW,), 2, IDS, 9, IDS, IDS, IDS),
            Event(1, 4, "workers_lost", 0.5, 12, 0.0, "", "was killed by SIGKILL"),
        ],
    ),
    "engine core to worker": (
        EngineToWorker,
        [
            StepPlan(1, 2, IDS, IDS, IDS, (SequenceStart(1, IDS, 3, 0, IDS, SAMPLING),), IDS, IDS),
            StepMasks(1, 2, IDS),
            Reset(3),
            Profile(1, True),
        ],
    ),
    "worker to engine core": (
        WorkerToEngine,
        [
            WorkerReady(2, "0123456789abcdef", 0, 3, "m", FACTS),
            StepResult(1, 2, IDS, BLOCK, ((0, 1, BLOCK),), ((1, "numerical_error"),), ((2, IDS),)),
            StepFailed(1, 2, IDS, "out_of_memory", "no memory"),
            WorkerReply(1, True, "trace.json"),
        ],
    ),
    "supervisor to child": (
        control.ToChild,
        [
            *[control.Start(config) for config in CONFIGS],
            control.EngineAt(3, "ipc://c", "ipc://w"),
            control.PeerGone(3, True, "was killed by SIGSEGV"),
            control.Drain(5.0),
            control.Retire(),
            control.Quit(),
        ],
    ),
    "child to supervisor": (
        control.ToSupervisor,
        [
            control.Phase("loading weights", "3 of 9", 0.3),
            control.Ready({"model": "m", "device": "cpu"}),
            control.Failed("out_of_memory", "no memory", "buy some", 75),
            control.Busy(10.0, EngineStats(1, 2, 3), EngineStats(4, 5, 6)),
            control.Keep(),
        ],
    ),
}
"""(union, one message of each kind) of each direction."""

GIB = (1 << 30).to_bytes(4, "big")
HOSTILE = [
    *(code + GIB for code in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf")),  # claims to hold 1 GiB
    *(b"\x91" * depth for depth in (50, 500, 2000)),  # nested arrays
    *(b"\x81\xa1k" * depth for depth in (50, 500)),  # nested maps
    *(b"\xdc\xff\xff" + item * 500 for item in (b"\x90", b"\xc0", b"\x01")),  # long arrays
    b"\xdd\x00\x00\x10\x00" + b"\x90" * 4096,
    b"\x82\xa1k\x01\xa1k\x02",  # the same key twice
    b"\xc4\x2dcos\nsystem\n(S'exit 70'\ntR." + b"." * 20,  # a pickle
    b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\xcb\x7f\xf8" + bytes(6),  # NaN
    b"\xcb\x7f\xf0" + bytes(6),  # infinity
    b"\xcb\xff\xf0" + bytes(6),
    b"\xd3\x80" + bytes(7),  # the least integer, and the greatest
    b"\xcf" + b"\xff" * 8,
    b"\xff",
    b"\xd9\x04\xff\xfe\xfd\xfc",  # text that is no UTF-8
    b"\xa3\xed\xa0\x80",  # a lone surrogate
    b"\xc7\x04\x01abcd",  # extension types
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xc0",
    b"\xc1",
    b"\xa0",
    b"\xc4\x00",
    b"\x90",
    b"\x80",
    b"\xc3",
]


class Mutator:
    """An endless supply of frames that look like messages of one direction."""

    def __init__(self, messages: list[Any], seed: object) -> None:
        self._random = random.Random(f"{seed}")
        self._frames = [msgspec.msgpack.encode(message) for message in messages]
        self._fields = [
            (frame[:1], [msgspec.msgpack.encode(field) for field in fields])
            for message, frame in zip(messages, self._frames, strict=True)
            if isinstance(fields := msgspec.msgpack.decode(frame), list)
        ]
        self._ways = [
            self._flip,
            self._truncate,
            self._splice,
            self._insert,
            self._overwrite,
            self._repeat,
            *([self._replace_field] * 3 if self._fields else []),
        ]

    def __call__(self) -> bytes:
        """The next frame; one in four is mutated twice."""
        frame = self._random.choice(self._ways)(self._random.choice(self._frames))
        if self._random.random() < 0.25:
            frame = self._random.choice(self._ways[:6])(frame or b"\xc0")
        return frame

    def _place(self, frame: bytes) -> int:
        return int(self._random.random() * len(frame))

    def _flip(self, frame: bytes) -> bytes:
        flipped = bytearray(frame)
        for _ in range(1 + self._place(b"1234")):
            flipped[self._place(frame)] ^= 1 << self._place(b"12345678")
        return bytes(flipped)

    def _truncate(self, frame: bytes) -> bytes:
        return frame[: self._place(frame)]

    def _splice(self, frame: bytes) -> bytes:
        other = self._random.choice(self._frames)
        return frame[: self._place(frame)] + other[self._place(other) :]

    def _insert(self, frame: bytes) -> bytes:
        place = self._place(frame)
        return frame[:place] + self._random.choice(HOSTILE) + frame[place:]

    def _overwrite(self, frame: bytes) -> bytes:
        place, hostile = self._place(frame), self._random.choice(HOSTILE)
        return frame[:place] + hostile + frame[place + len(hostile) :]

    def _repeat(self, frame: bytes) -> bytes:
        first, last = sorted((self._place(frame), self._place(frame)))
        return frame[:last] + frame[first:last] * 2 + frame[last:]

    def _replace_field(self, _: bytes) -> bytes:
        """A whole field by something else: what lies behind it is still where it should be."""
        head, fields = self._random.choice(self._fields)
        place = self._place(head * len(fields))
        other = self._random.choice(self._random.choice(self._fields)[1])
        value = self._random.choice(HOSTILE) if self._random.random() < 0.6 else other
        return head + b"".join((*fields[:place], value, *fields[place + 1 :]))
