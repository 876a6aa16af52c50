"""Where any process of a server accepts connections over IP, as the kernel tells."""

import os
import re
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

_LISTEN = "0A"


def listening(stack: "Stack") -> set[tuple[str, int]]:
    """(address, port)"""
    return {address for pids in stack.pids.values() for pid in pids for address in listening_of(pid).values()}


def listening_of(pid: int) -> dict[str, tuple[str, int]]:
    """(address, port), by the socket's inode, which no other has as long as the machine runs."""
    inodes = socket_inodes(pid)
    return {inode: address for inode, address in all_listening().items() if inode in inodes}


def all_listening() -> dict[str, tuple[str, int]]:
    """The same of everything on this machine."""
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {one[9]: _address(one[1]) for one in lines if one[3] == _LISTEN}


def _address(text: str) -> tuple[str, int]:
    """The kernel writes words of an address in the machine's order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    return str(ip_address(b"".join(words))), int(port, 16)


def socket_inodes(pid: int) -> set[str]:
    """Of all sockets that a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed while we looked
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                found.add(match[1])
    return found
