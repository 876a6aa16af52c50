"""The HTTP sockets, bound before anything is spawned, so that a port in use stops the start at once.

Each frontend gets a socket of its own (SO_REUSEPORT spreads the connections), and the supervisor keeps
all of them open: connections to a frontend that died wait in the backlog for its successor.
"""

import errno
import os
import socket
import stat
from contextlib import suppress

from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions

BACKLOG = 2048


def listeners_for(options: FrontendOptions) -> list[socket.socket]:
    """One for each frontend. Raises StartupError."""
    if options.uds:
        return listen_uds(options.uds, options.frontends)
    return listen(options.host, options.port, options.frontends)


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets that listen on one port; 0 finds a free one. Raises StartupError."""
    family, address = _resolve(host, port)
    try:
        if count == 1:
            return [_bind(family, address, shared=False)]
        # With SO_REUSEPORT set, binding succeeds beside another server of the same user. So look first.
        _bind(family, address, shared=False).close()
        sockets = [_bind(family, address, shared=True)]
        address = (address[0], sockets[0].getsockname()[1], *address[2:])
        sockets += [_bind(family, address, shared=True) for _ in range(count - 1)]
    except OSError as error:
        raise _explain(error, host, port) from None
    return sockets


def listen_uds(path: str, count: int) -> list[socket.socket]:
    """One unix socket, `count` times: whoever is free accepts. A socket that nobody listens on any more is
    replaced. Raises StartupError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        _remove_abandoned(path)
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return [listener, *(listener.dup() for _ in range(count - 1))]
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        reason = "another program uses it, or it is no socket" if in_use else error.strerror or str(error)
        raise StartupError(f"--uds {path}: cannot listen there: {reason}", hint="name another path") from None
    finally:
        os.umask(mask)


def stop_listening(listeners: list[socket.socket], uds: str) -> None:
    """The end: a unix socket's file goes, too."""
    for listener in listeners:
        listener.close()
    if uds:
        with suppress(OSError):
            os.unlink(uds)


def url(listener: socket.socket, scheme: str = "http") -> str:
    """Where a client on this machine finds it: "http://127.0.0.1:8000", "unix:/run/tern.sock"."""
    if listener.family is socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _remove_abandoned(path: str) -> None:
    """What is there stays, unless it is a socket on which nobody answers."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int, *tuple[int, ...]]]:
    """IPv4 first where a name has both, as `localhost` does: that is what most clients try."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise StartupError(
            f"--host {host}: not a known address: {error}",
            hint="127.0.0.1 serves this machine, 0.0.0.0 or :: every network",
        ) from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
    return family, (str(address[0]), int(address[1]), *(int(part) for part in address[2:]))


def _bind(
    family: socket.AddressFamily, address: tuple[str, int, *tuple[int, ...]], *, shared: bool
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _explain(error: OSError, host: str, port: int) -> StartupError:
    match error.errno:
        case errno.EADDRINUSE:
            message = f"port {port} on {host} is in use by another program"
            hint = "stop that one, or choose another with --port (0: any free one)"
        case errno.EADDRNOTAVAIL:
            message = f"--host {host}: not an address of this machine"
            hint = "127.0.0.1 serves this machine, 0.0.0.0 or :: every network"
        case errno.EACCES:
            message = f"port {port}: you may not listen there"
            hint = "ports below 1024 are the administrator's; choose another with --port"
        case _:
            message, hint = f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}", ""
    return StartupError(message, hint=hint)
