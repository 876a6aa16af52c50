"""Who cannot reach what: other users of the machine its sockets, one tenant another's cache."""

import os
from pathlib import Path
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.stack.listening import listening

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack

NOBODY = 65534


def test_other_users_cannot_reach_the_sockets(server: "Stack") -> None:
    assert os.stat(server.run_dir).st_mode & 0o777 == 0o700
    path = Path(server.endpoint_file).read_text().strip().removeprefix("ipc://")
    with socket(AF_UNIX) as ours:
        ours.connect(path)
    if os.geteuid() == 0:  # whoever may, becomes somebody else
        with socket(AF_UNIX) as theirs:
            os.seteuid(NOBODY)
            try:
                with pytest.raises(PermissionError):
                    theirs.connect(path)
            finally:
                os.seteuid(0)


def test_only_the_api_listens(server: "Stack") -> None:
    assert listening(server) == {("127.0.0.1", int(server.base_url.rpartition(":")[2]))}


def test_a_tenant_does_not_see_what_another_has_cached(serve: "Serve", tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-one\nkey-of-two\n")
    keys.chmod(0o600)
    stack = serve("--api-key-file", str(keys))
    body = {"prompt": "a prompt of some blocks, which both of them have. " * 8, "max_tokens": 2}

    def cached(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx2.post(f"{stack.base_url}/v1/completions", json=body, headers=headers, timeout=60)
        usage = answer.raise_for_status().json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("key-of-one") == 0
    assert cached("key-of-one") > 0
    assert cached("key-of-two") == 0
    assert cached("key-of-two") > 0
