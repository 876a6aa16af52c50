"""LocalServer: what of the options is for a server that others ask is left out."""

import subprocess
from typing import Any

import pytest

from protocol.frontend_options import FrontendOptions
from protocol.options import ServeOptions
from scripts.local_server import LocalServer


class _Ended:
    """Instead of the process."""

    def __init__(self, command: list[str], **_: Any) -> None:
        self.command = command

    def poll(self) -> int:
        return 0


def test_its_socket_has_neither_certificate_nor_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **_: Any) -> _Ended:
        commands.append(command)
        return _Ended(command)

    monkeypatch.setattr(subprocess, "Popen", popen)
    frontend = FrontendOptions(ssl_certfile="/cert", ssl_keyfile="/key", api_key=("secret",), port=1)
    server = LocalServer(ServeOptions(frontend=frontend))
    server.close()
    (command,) = commands
    assert "--uds" in " ".join(command)
    assert not {"/cert", "/key", "secret", "--port"} & set(command), command
