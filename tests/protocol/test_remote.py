"""tcp with CURVE: who gets in, who does not, and what must fit together before anyone is asked."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol.client import EngineClient
from protocol.curve import CurveKeys, check_endpoint, check_options, read_allowed_keys, read_key
from protocol.errors import StartupError
from protocol.messages import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    ClientMessage,
    ControlResult,
    EngineFacts,
    EngineMessage,
    EngineStats,
    Ping,
    Pong,
)
from protocol.options import ServerOptions
from protocol.remote import CurveRouter, Routers
from protocol.sockets import Dealer, Router, fingerprint
from tests.conftest import DEADLINE_S

Door = CurveRouter[ClientMessage, EngineMessage]


def write_keys(folder: Path, name: str) -> tuple[str, str]:
    """(public, secret), also in files as `tern keys` writes them."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    (folder / name).write_text(secret + "\n")
    (folder / name).chmod(0o600)
    (folder / f"{name}.pub").write_text(public + "\n")
    return public, secret


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the keys of the engine core, of a friend and of a stranger; only the friend is allowed."""
    for name in ("engine", "friend", "stranger"):
        write_keys(tmp_path, name)
    (tmp_path / "allowed").write_text(
        "\n" + (tmp_path / "friend.pub").read_text() + write_keys(tmp_path, "x")[0]
    )
    return tmp_path


@pytest.fixture
def door(folder: Path) -> Iterator[Door]:
    door: Door = CurveRouter(
        ClientMessage, "tcp://127.0.0.1:0", str(folder / "engine"), str(folder / "allowed")
    )
    yield door
    door.close()


@pytest.fixture
def dial(door: Door) -> Iterator[Callable[[CurveKeys | None], "zmq.Socket[bytes]"]]:
    """dial(keys) is a socket that connects to the door; without keys, it speaks plain ZMTP. It is watched
    before it connects: a handshake that has failed by then is not tried again."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def connect(keys: CurveKeys | None) -> "zmq.Socket[bytes]":
        if keys is not None:
            dealer: Dealer[Any, Any] = Dealer(context, EngineMessage)
            dealer.socket.get_monitor_socket()
            dealer.connect(door.endpoint, keys)
            sockets.append(dealer.socket)
        else:
            sockets.append(context.socket(zmq.DEALER))
            sockets[-1].get_monitor_socket()
            sockets[-1].connect(door.endpoint)
        return sockets[-1]

    yield connect
    for socket in sockets:
        socket.disable_monitor()
        socket.close(0)
    context.term()


FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
}


def handshake(door: Door, socket: "zmq.Socket[bytes]") -> int:
    """The event that ends it, while the door is served."""
    monitor = socket.get_monitor_socket()
    poller = zmq.Poller()
    for source in (monitor, *door.sockets):
        poller.register(source, zmq.POLLIN)
    try:
        while ready := dict(poller.poll(int(DEADLINE_S * 1000))):
            assert door.drain() == []
            if monitor in ready:
                event = recv_monitor_message(monitor)["event"]
                if event in FAILED or event in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED):
                    return int(event)
    finally:
        socket.disable_monitor()
        monitor.close()
    raise AssertionError("the handshake did not end")


def friend_gets_in(door: Door, folder: Path, dial: Callable[[CurveKeys | None], "zmq.Socket[bytes]"]) -> None:
    socket = dial(CurveKeys.read(str(folder / "engine.pub"), str(folder / "friend")))
    assert handshake(door, socket) == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_an_allowed_key_gets_in(door: Door, folder: Path, dial: Any) -> None:
    friend_gets_in(door, folder, dial)
    assert door.denied == 0


def test_a_key_that_is_not_allowed_gets_nowhere(door: Door, folder: Path, dial: Any) -> None:
    stranger = dial(CurveKeys.read(str(folder / "engine.pub"), str(folder / "stranger")))
    stranger.send(b"hello")
    assert handshake(door, stranger) in FAILED
    assert door.denied >= 1
    friend_gets_in(door, folder, dial)


def test_a_client_that_believes_in_another_server_gets_nowhere(door: Door, folder: Path, dial: Any) -> None:
    misled = dial(CurveKeys.read(str(folder / "x.pub"), str(folder / "friend")))
    assert handshake(door, misled) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    friend_gets_in(door, folder, dial)


def test_nobody_gets_in_when_nobody_is_asked(door: Door, folder: Path, dial: Any) -> None:
    door.zap.close(0)
    friend = dial(CurveKeys.read(str(folder / "engine.pub"), str(folder / "friend")))
    monitor = friend.get_monitor_socket()
    events: list[int] = []
    while not {*FAILED, zmq.EVENT_HANDSHAKE_SUCCEEDED}.intersection(events):
        assert monitor.poll(int(DEADLINE_S * 1000))
        events.append(recv_monitor_message(monitor)["event"])
    friend.disable_monitor()
    monitor.close()
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in events


def test_a_client_without_curve_gets_nowhere(door: Door, folder: Path, dial: Any) -> None:
    plain = dial(None)
    plain.send(b"hello")
    assert handshake(door, plain) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    friend_gets_in(door, folder, dial)
    assert door.dropped_frames == 0


@pytest.mark.parametrize(
    "request_frames",
    [
        [],
        [b"1.0", b"1", b"tern", b"", b"", b"CURVE"],
        [b"1.0", b"1", b"tern", b"", b"", b"NULL"],
        [b"1.0", b"1", b"tern", b"", b"", b"PLAIN", b"user", b"password"],
        [b"1.0", b"1", b"tern", b"", b"", b"CURVE", b"k" * 32],
        [b"1.0", b"1", b"tern", b"", b"", b"CURVE", b""],
    ],
)
def test_what_is_not_understood_is_denied(door: Door, request_frames: list[bytes]) -> None:
    answer = door._decide(request_frames)
    assert answer[2] == b"400"
    assert len(answer) == 6
    good = next(iter(door._allowed))
    assert door._decide([b"1.0", b"1", b"tern", b"", b"", b"CURVE", good])[2] == b"200"
    assert door._decide([b"2.0", b"1", b"tern", b"", b"", b"CURVE", good])[2] == b"400"
    assert door._decide([b"1.0", b"1", b"tern", b"", b"", b"PLAIN", good])[2] == b"400"
    assert door._decide([b"1.0", b"1", b"tern", b"", b"", b"CURVE", good, good])[2] == b"400"


def test_local_and_remote_clients_are_served_as_one(door: Door, folder: Path, tmp_path: Path) -> None:
    """ZAP is asked for none of the sockets of another context."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    local: Router[ClientMessage, EngineMessage] = Router(context, ClientMessage)
    local.bind(f"ipc://{tmp_path}/s")
    both = Routers([local, door])
    near: Dealer[EngineMessage, ClientMessage] = Dealer(context, EngineMessage)
    near.connect(f"ipc://{tmp_path}/s")
    far: Dealer[EngineMessage, ClientMessage] = Dealer(context, EngineMessage)
    far.connect(door.endpoint, CurveKeys.read(str(folder / "engine.pub"), str(folder / "friend")))
    near.send(Ping(1))
    far.send(Ping(2))
    far.socket.send(b"garbage")
    poller = zmq.Poller()
    for socket in both.sockets:
        poller.register(socket, zmq.POLLIN)
    received: list[tuple[bytes, ClientMessage]] = []
    while (len(received), both.dropped_frames) != (2, 1):
        assert poller.poll(int(DEADLINE_S * 1000))
        received += both.drain()
    for peer, message in received:
        assert isinstance(message, Ping)
        assert both.send(peer, ControlResult(message.nonce, True))
    for dealer, nonce in ((near, 1), (far, 2)):
        assert dealer.socket.poll(int(DEADLINE_S * 1000))
        assert dealer.drain() == [ControlResult(nonce, True)]
    assert not both.send(b"\0nobody", ControlResult(1, True))
    for endpoint in (near, far, local):
        endpoint.close()
    context.term()


async def test_a_client_attaches_and_asks(door: Door, folder: Path) -> None:
    keys = CurveKeys.read(str(folder / "engine.pub"), str(folder / "friend"))

    async def serve() -> None:
        while True:
            for peer, message in door.drain():
                if isinstance(message, Attach):
                    facts = EngineFacts("m", 9, 9, 1, 9, (), 9)
                    door.send(peer, Attached(PROTOCOL_VERSION, fingerprint(), 1, facts))
                elif isinstance(message, Ping):
                    door.send(peer, Pong(message.nonce, 5, EngineStats()))
            await asyncio.sleep(0.002)

    serving = asyncio.create_task(serve())
    client = await EngineClient.attach(door.endpoint, curve=keys, timeout_s=DEADLINE_S)
    assert (await client.ping(DEADLINE_S)).epoch == 5
    await client.close()
    serving.cancel()


@pytest.mark.parametrize("bad", ["", "short", "é" * 40, " " * 40, "~" * 40, "#" * 40, "a" * 41])
def test_what_is_no_key_is_refused(bad: str) -> None:
    good = zmq.curve_keypair()[0].decode()
    CurveKeys(good, good, good)
    with pytest.raises(ValueError, match="secret is no key: expected 40 characters of Z85"):
        CurveKeys(good, bad, good)


def test_keys_are_not_shown(folder: Path) -> None:
    keys = CurveKeys.read(str(folder / "engine.pub"), str(folder / "friend"))
    assert keys.public in repr(keys)
    assert keys.secret not in repr(keys)


def test_no_other_socket_listens_on_tcp() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router: Router[Any, Any] = Router(context, ClientMessage)
    with pytest.raises(ValueError, match="only ipc:// is bound without keys"):
        router.bind("tcp://127.0.0.1:0")
    router.close()
    context.term()


def test_a_taken_port_is_one_line(door: Door, folder: Path) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on {door.endpoint}: Address already in use"):
        CurveRouter(ClientMessage, door.endpoint, str(folder / "engine"), str(folder / "allowed"))


@pytest.mark.parametrize("good", ["tcp://127.0.0.1:5555", "tcp://[::1]:1"])
def test_one_explicit_address_is_an_endpoint(good: str) -> None:
    check_endpoint(good)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("tcp://*:5555", "address of one interface"),
        ("tcp://0.0.0.0:5555", "every interface"),
        ("tcp://[::]:5555", "every interface"),
        ("tcp://:5555", "address of one interface"),
        ("tcp://127.0.0.1", "address of one interface"),
        ("tcp://127.0.0.1:0", "address of one interface"),
        ("tcp://127.0.0.1:70000", "address of one interface"),
        ("tcp://127.0.0.1:5/x", "address of one interface"),
        ("tcp://localhost:5555", "address of one interface"),
        ("ipc:///tmp/x", "address of one interface"),
        ("udp://127.0.0.1:5", "address of one interface"),
        ("127.0.0.1:5555", "address of one interface"),
    ],
)
def test_any_other_endpoint_is_refused_with_the_rule(bad: str, rule: str) -> None:
    with pytest.raises(StartupError) as refused:
        check_endpoint(bad)
    assert bad in refused.value.message
    assert rule in refused.value.message


def remote(folder: Path, endpoint: str = "", secret: str = "", allowed: str = "") -> ServerOptions:
    """The options for tcp, of files in the folder."""
    return ServerOptions(
        engine_endpoint=endpoint,
        curve_secret_key=secret and str(folder / secret),
        curve_allowed_keys=allowed and str(folder / allowed),
    )


def test_options_come_all_three_or_not_at_all(folder: Path) -> None:
    check_options(ServerOptions())
    check_options(remote(folder, "tcp://127.0.0.1:5", "engine", "allowed"))
    with pytest.raises(StartupError, match="needs --curve-secret-key and --curve-allowed-keys") as refused:
        check_options(remote(folder, "tcp://127.0.0.1:5"))
    assert "tern keys FILE" in refused.value.hint
    with pytest.raises(StartupError, match="--curve-secret-key needs --engine-endpoint"):
        check_options(remote(folder, "", "engine", "allowed"))


def test_files_of_keys_are_checked(folder: Path) -> None:
    (folder / "empty").write_text("\n")
    (folder / "short").write_text("abc\n")
    (folder / "binary").write_bytes(b"\xff" * 40)
    (folder / "open").write_text((folder / "engine").read_text())
    (folder / "open").chmod(0o640)
    cases = [
        ("none", "allowed", "cannot be read: No such file"),
        ("short", "allowed", "holds no key"),
        ("empty", "allowed", "holds no key"),
        ("binary", "allowed", "holds no key"),
        ("allowed", "allowed", "holds no key"),
        ("open", "allowed", "others may read"),
        ("engine", "none", "cannot be read"),
        ("engine", "empty", "allows no client"),
        ("engine", "short", "entry 1 is no public key"),
    ]
    for secret, allowed, rule in cases:
        with pytest.raises(StartupError, match=rule) as refused:
            check_options(remote(folder, "tcp://127.0.0.1:5", secret, allowed))
        assert refused.value.hint
        assert refused.value.message.startswith(
            f"--curve-{'secret-key' if allowed == 'allowed' else 'allowed-keys'} "
        )
    assert len(read_allowed_keys(str(folder / "allowed"))) == 2
    assert read_key(str(folder / "engine.pub")) == (folder / "engine.pub").read_text().strip()
