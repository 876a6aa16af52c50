"""`tern keys FILE`: a key pair for `tcp://`. FILE holds the secret key, FILE.pub the public one.

The public key of the engine core goes to its clients, those of the clients into the file that
`--curve-allowed-keys` names. Nothing is ever overwritten.
"""

import os
from collections.abc import Mapping, Sequence

import zmq

from protocol.curve import public_file
from protocol.errors import StartupError

from .command_options import KeysCommand
from .flags import Command

KEYS = Command("keys", "Make a key pair for tcp://. Nothing is overwritten.", KeysCommand, positional="file")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0, with both files written. Raises StartupError."""
    command, _ = KEYS.parse(argv, environ)
    path = command.keys.file
    if not path:
        raise StartupError("the file to write is missing", hint="tern keys FILE")
    public, secret = zmq.curve_keypair()
    for name in (path, public_file(path)):
        if os.path.lexists(name):
            raise StartupError(f"{name}: exists already", hint="name another file, or remove it")
    _write(path, secret, 0o600)
    _write(public_file(path), public, 0o644)
    print(f"secret key  {path}\npublic key  {public_file(path)}")
    return 0


def _write(path: str, key: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise StartupError(f"{path}: cannot be written: {error.strerror}") from None
    with open(descriptor, "wb") as file:
        file.write(key + b"\n")
