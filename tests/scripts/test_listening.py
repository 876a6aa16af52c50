"""HTTP sockets: one port, found to be in use before anything else happens."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.errors import StartupError
from scripts.listening import listen, listen_uds, stop_listening, url


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, host: str, port: int, count: int) -> list[socket.socket]:
    return [stack.enter_context(listener) for listener in listen(host, port, count)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_free_port_is_found_and_shared(stack: ExitStack, count: int) -> None:
    listeners = opened(stack, "127.0.0.1", 0, count)
    assert len(listeners) == count
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert url(listeners[0]) == f"http://127.0.0.1:{listeners[0].getsockname()[1]}"


@pytest.mark.parametrize("theirs", [1, 2])
@pytest.mark.parametrize("ours", [1, 2])
def test_a_port_in_use_is_named_with_the_remedy(stack: ExitStack, theirs: int, ours: int) -> None:
    port = opened(stack, "127.0.0.1", 0, theirs)[0].getsockname()[1]
    with pytest.raises(StartupError, match=f"port {port} on 127.0.0.1 is in use") as caught:
        listen("127.0.0.1", port, ours)
    assert "--port" in caught.value.hint


def test_a_port_can_be_used_again_at_once(stack: ExitStack) -> None:
    (listener,) = listen("127.0.0.1", 0, 1)
    address = listener.getsockname()
    client = stack.enter_context(socket.create_connection(address))
    accepted, _ = listener.accept()
    accepted.close()  # the side that closes first leaves its port in TIME_WAIT
    client.recv(1)
    listener.close()
    assert opened(stack, address[0], address[1], 1)[0].getsockname() == address


def test_connections_wait_for_whoever_accepts_next(stack: ExitStack) -> None:
    (listener,) = opened(stack, "127.0.0.1", 0, 1)
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    client.sendall(b"waiting")
    listener.setblocking(True)
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.recv(16) == b"waiting"


def test_ipv6(stack: ExitStack) -> None:
    try:
        (listener,) = opened(stack, "::1", 0, 1)
    except StartupError:
        pytest.skip("this machine has no IPv6")
    port = listener.getsockname()[1]
    assert url(listener) == f"http://[::1]:{port}"
    stack.enter_context(socket.create_connection(("::1", port)))


def test_every_network_includes_this_machine(stack: ExitStack) -> None:
    (listener,) = opened(stack, "0.0.0.0", 0, 1)
    port = listener.getsockname()[1]
    assert url(listener) == f"http://127.0.0.1:{port}"
    stack.enter_context(socket.create_connection(("127.0.0.1", port)))


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7"])
def test_a_host_that_is_not_ours(host: str) -> None:
    with pytest.raises(StartupError, match=f"--host {host}: not a") as caught:
        listen(host, 0, 1)
    assert "127.0.0.1" in caught.value.hint


def test_a_unix_socket_is_private_shared_and_gone_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listeners = listen_uds(path, 2)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert url(listeners[1]) == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"x")
        listeners[1].setblocking(True)
        accepted, _ = listeners[1].accept()
        with accepted:
            assert accepted.recv(1) == b"x"
    with pytest.raises(StartupError, match="another program uses it"):
        listen_uds(path, 1)
    stop_listening(listeners, path)
    assert not os.path.exists(path)


def test_an_abandoned_unix_socket_is_replaced_but_a_file_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    stop_listening(listen_uds(path, 1), path)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(StartupError, match="cannot listen there"):
        listen_uds(str(file), 1)
    assert file.read_text() == "precious"
