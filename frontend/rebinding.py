"""Rebinding: refuses requests to a name that somebody else's name server may have bound to this machine.

A page of evil.example can have its own name answered with 127.0.0.1, and is then of the same origin as a
server that listens there. Only the Host header still says evil.example. Who listens on the loopback interface
without keys trusts whoever is on the machine, so the name must be one that no stranger can hand out: an
address, a name without dots, one of .localhost or .internal, --host, or one of --allowed-hosts.
"""

import ipaddress
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import RequestError
from protocol.frontend_options import FrontendOptions

OURS = (".localhost", ".internal")
"""Reserved: no public name server answers for them (RFC 6761; ICANN 2024)."""


class ForeignHost(RequestError):
    """The Host header names a machine that this may not be."""

    code = "foreign_host"
    status = 403


class Rebinding:
    """Lets pass requests to `hosts`, and to names that cannot be a stranger's."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = _name_of(host.decode("latin-1"))
        if name not in self._hosts and not _is_ours(name):
            rule = "this server listens on this machine only and without keys, so other names are refused"
            raise ForeignHost(f"Host {name[:200]!r}: {rule}; --allowed-hosts lets them")
        await self._app(scope, receive, send)


def is_exposed(options: FrontendOptions, keys: Collection[str]) -> bool:
    """Whether pages in a browser on this machine are all there is to keep out. Behind a proxy that passes on
    other names, a socket file or keys, they are kept out otherwise."""
    if keys or options.uds or options.root_path or "*" in options.allowed_hosts:
        return False
    try:
        return ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        return _is_ours(options.host.lower())


def _name_of(host: str) -> str:
    """Without the port."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_ours(name: str) -> bool:
    if "." not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(OURS)
    return True
