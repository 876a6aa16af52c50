"""The wire: every message survives the round trip, bounds hold, and the specification is complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from protocol import columns, control
from protocol.errors import BY_CODE, InternalError, TernError
from protocol.messages import ClientMessage, EngineMessage, Finish, Outputs, Submit
from protocol.sampling import SamplingParams
from protocol.sockets import DECODE_ERRORS, Dealer, Router, fingerprint
from protocol.steps import EngineToWorker, StepPlan, WorkerToEngine

UNIONS: list[Any] = [ClientMessage, EngineMessage, EngineToWorker, WorkerToEngine]
CONTROL: list[Any] = [control.ToChild, control.ToSupervisor]
SPECIFICATION = (Path(__file__).parents[2] / "protocol" / "README.md").read_text()


@pytest.mark.parametrize("message", [m for union in UNIONS + CONTROL for m in get_args(union)])
def test_each_message_is_specified(message: type[msgspec.Struct]) -> None:
    tag = message.__struct_config__.tag
    row = f"| `{message.__name__}` |"
    assert row in SPECIFICATION
    if message.__module__ != "protocol.control":
        assert f"{row} `{tag}` |" in SPECIFICATION


def test_the_specification_names_no_message_that_does_not_exist() -> None:
    known = {m.__name__ for union in UNIONS + CONTROL for m in get_args(union)}
    named = {line.split("`")[1] for line in SPECIFICATION.splitlines() if line.startswith("| `")}
    assert named <= known


@pytest.mark.parametrize("message", [m for union in UNIONS for m in get_args(union)])
def test_messages_are_frozen_tagged_arrays(message: type[msgspec.Struct]) -> None:
    config = message.__struct_config__
    assert config.frozen
    assert config.array_like
    assert isinstance(config.tag, str)


def unbounded(declared: inspect.Type, where: str, seen: set[type]) -> Iterator[str]:
    """Places in a type where a value may be of any size."""
    match declared:
        case inspect.StrType() | inspect.BytesType() if declared.max_length is None:
            yield where
        case inspect.IntType() if declared.ge is None or declared.le is None:
            yield where
        case inspect.FloatType() if None in (declared.ge or declared.gt, declared.le) and declared.ge != 0:
            yield where
        case inspect.VarTupleType():
            if declared.max_length is None:
                yield where
            yield from unbounded(declared.item_type, where, seen)
        case inspect.TupleType():
            for item in declared.item_types:
                yield from unbounded(item, where, seen)
        case inspect.UnionType():
            for option in declared.types:
                yield from unbounded(option, where, seen)
        case inspect.StructType() if declared.cls not in seen:
            seen.add(declared.cls)
            for field in declared.fields:
                yield from unbounded(field.type, f"{declared.cls.__name__}.{field.name}", seen)
        case inspect.ListType() | inspect.DictType() | inspect.AnyType() | inspect.RawType():
            yield where


@pytest.mark.parametrize("union", UNIONS)
def test_every_field_is_bounded(union: Any) -> None:
    assert list(unbounded(inspect.type_info(union), "", set())) == []


def test_tags_are_unique_within_a_direction() -> None:
    for union in UNIONS:
        tags = [message.__struct_config__.tag for message in get_args(union)]
        assert len(tags) == len(set(tags))


def test_fingerprint_is_stable_within_a_build() -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_columns_round_trip(numbers: list[int]) -> None:
    assert list(columns.unpack_ids(columns.pack_ids(numbers))) == numbers


def test_a_torn_column_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        columns.unpack_ids(b"\0\0\0")
    with pytest.raises(OverflowError):
        columns.pack_ids([1 << 31])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("min_tokens", -1),
        ("stop_token_ids", [-1]),
        ("logit_bias", [[1, 101.0]]),
        ("logprobs", 21),
    ],
)
def test_sampling_ranges_are_in_the_types(field: str, value: object) -> None:
    names = SamplingParams.__struct_fields__
    good: list[Any] = list(msgspec.to_builtins(SamplingParams()))
    assert msgspec.convert(good, SamplingParams) == SamplingParams()
    good[names.index(field)] = value
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good, SamplingParams)


def test_errors_keep_their_class_over_the_wire() -> None:
    for code, kind in BY_CODE.items():
        assert kind.code == code
        assert issubclass(kind, TernError)
        assert 400 <= kind.status < 600
    assert BY_CODE.get("from the future", InternalError) is InternalError


@pytest.fixture
def link(tmp_path: Path) -> Iterator[tuple[Router[Any, Any], Dealer[Any, Any]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router: Router[Any, Any] = Router(context, ClientMessage)
    router.bind(f"ipc://{tmp_path}/s")
    dealer: Dealer[Any, Any] = Dealer(context, EngineMessage)
    dealer.connect(f"ipc://{tmp_path}/s")
    yield router, dealer
    router.close()
    dealer.close()
    context.term()


def test_messages_cross_in_order(link: tuple[Router[Any, Any], Dealer[Any, Any]]) -> None:
    router, dealer = link
    sent = [Submit(i, columns.pack_ids([i]), SamplingParams(), timeout_s=1.5) for i in range(100)]
    for message in sent:
        assert dealer.send(message)
    received: list[Any] = []
    while len(received) < 100:
        router.socket.poll(10_000)
        received += router.drain()
    assert [message for _, message in received] == sent
    peer = received[0][0]
    outputs = Outputs(1, 2, b"\0" * 8, b"\0" * 4, b"\0" * 4, bytes([Finish.STOP]))
    assert router.send(peer, outputs)
    dealer.socket.poll(10_000)
    assert dealer.drain() == [outputs]


def test_sending_to_a_peer_that_is_gone_says_so(link: tuple[Router[Any, Any], Dealer[Any, Any]]) -> None:
    router, _ = link
    assert not router.send(b"nobody", Outputs(1, 2, b"", b"", b"", b""))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_mutated_frames_never_raise_anything_undeclared(noise: bytes, place: int, byte: int) -> None:
    """A decoder either returns a message or raises what the endpoints catch."""
    plan = StepPlan(1, 2, columns.pack_ids([1]), columns.pack_ids([1]))
    frame = bytearray(msgspec.msgpack.encode(plan))
    frame[place % len(frame)] = byte
    for union in UNIONS:
        decoder = msgspec.msgpack.Decoder(union)
        for data in (noise, bytes(frame), bytes(frame) + noise):
            with contextlib.suppress(*DECODE_ERRORS):
                decoder.decode(data)


def test_control_packets_cross_and_end_of_file_is_seen() -> None:
    ours, theirs = control.channel_pair()
    child: control.ChildChannel = control.Channel(theirs, control.ToChild)
    assert ours.receive() is None
    assert child.send(control.Phase("loading weights", "3 of 9", 0.3))
    assert ours.receive(wait=True) == control.Phase("loading weights", "3 of 9", 0.3)
    assert ours.send(control.EngineAt(3, "ipc://c", "ipc://w"))
    assert child.receive() == control.EngineAt(3, "ipc://c", "ipc://w")
    ours.close()
    with pytest.raises(EOFError):
        child.receive()
    assert not child.send(control.Ready())
    child.close()


def test_a_packet_can_bring_a_descriptor() -> None:
    """The last one that came, as another one of the same file; those that nobody takes are closed."""
    ours, theirs = control.channel_pair()
    child: control.ChildChannel = control.Channel(theirs, control.ToChild)
    before = len(os.listdir("/proc/self/fd"))
    files = [os.memfd_create(name) for name in ("first", "second", "third")]
    for file in files[:2]:
        assert child.send(control.Keep(), file)
    assert ours.receive() == ours.receive() == control.Keep()
    taken = ours.take()
    assert os.path.samestat(os.fstat(taken), os.fstat(files[1]))
    assert not os.get_inheritable(taken)
    assert ours.take() == -1
    assert child.send(control.Keep(), files[2])
    assert ours.receive() == control.Keep()
    for file in (*files, taken):
        os.close(file)
    ours.close()
    child.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
