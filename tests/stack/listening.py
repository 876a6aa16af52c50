"""Where any process of a server accepts connections over IP, as the kernel tells."""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

_LISTEN = "0A"


def listening(stack: "Stack") -> set[tuple[str, int]]:
    """(address, port)"""
    inodes = {inode for pids in stack.pids.values() for pid in pids for inode in _socket_inodes(pid)}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {_address(one[1]) for one in lines if one[3] == _LISTEN and one[9] in inodes}


def _address(text: str) -> tuple[str, int]:
    """The kernel writes words of an address in the machine's order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    return str(ip_address(b"".join(words))), int(port, 16)


def _socket_inodes(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
            found.append(match[1])
    return found
