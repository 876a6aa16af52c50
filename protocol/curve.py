"""Keys and rules of `tcp://`: CURVE keys, the list of allowed clients, explicit addresses. Knows no sockets.

Keys are Curve25519 in Z85, 40 characters. A key pair is two files, made by `tern keys FILE`: FILE, which
only its owner may read, holds the secret key, and FILE.pub the public one.
"""

import ipaddress
import os
import stat
import string
from urllib.parse import urlsplit

from msgspec import Struct

from .errors import StartupError
from .options import ServerOptions

_RULE = "expected 40 characters of Z85"
_DIGITS = string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#"
"""Of Z85, https://rfc.zeromq.org/spec/32: five of them are 32 bits."""


class CurveKeys(Struct, frozen=True):
    """A client's side of a connection, in Z85."""

    server_public: str
    secret: str
    public: str

    @classmethod
    def read(cls, server_public_file: str, key_file: str) -> "CurveKeys":
        """From files as `tern keys` writes them. Raises StartupError."""
        return cls(
            server_public=read_key(server_public_file),
            secret=read_secret_key(key_file),
            public=read_key(public_file(key_file)),
        )

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name in self.__struct_fields__:
            if not is_key(getattr(self, name)):
                raise ValueError(f"{name} is no key: {_RULE}, as tern keys FILE writes them")

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r})"


def is_key(text: str) -> bool:
    """Whether this is a key, public or secret, in Z85."""
    if len(text) != 40 or not set(text) <= set(_DIGITS):
        return False
    groups = [[_DIGITS.index(digit) for digit in text[first : first + 5]] for first in range(0, 40, 5)]
    return all(
        sum(digit * 85 ** (4 - place) for place, digit in enumerate(group)) < 1 << 32 for group in groups
    )


def public_file(key_file: str) -> str:
    """Where the public key of a secret one lies."""
    return f"{key_file}.pub"


def read_key(path: str) -> str:
    """The one key in a file. Raises StartupError."""
    [key, *more] = _lines(path) or [""]
    if more or not is_key(key):
        raise StartupError(f"{path}: holds no key: {_RULE}", hint=_MAKE)
    return key


def read_secret_key(path: str) -> str:
    """The secret key in a file that nobody else may read. Raises StartupError."""
    key = read_key(path)
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise StartupError(f"{path}: others may read this secret key", hint=f"chmod 600 {path}")
    return key


def read_allowed_keys(path: str) -> frozenset[str]:
    """The public keys in a file, one a line. Raises StartupError."""
    keys = _lines(path)
    for number, key in enumerate(keys, 1):
        if not is_key(key):
            raise StartupError(f"{path}: entry {number} is no public key: {_RULE}", hint=_MAKE)
    if not keys:
        raise StartupError(
            f"{path}: allows no client", hint="put each client's public key on a line of its own"
        )
    return frozenset(keys)


def check_endpoint(endpoint: str) -> None:
    """Raise StartupError unless it is `tcp://ADDRESS:PORT` with one explicit address."""
    rule = "expected tcp://ADDRESS:PORT with the address of one interface, such as tcp://10.0.0.5:5555"
    try:
        parts = urlsplit(endpoint)
        address = ipaddress.ip_address(parts.hostname or "")
        complete = parts.scheme == "tcp" and parts.port and not (parts.path or parts.query or parts.username)
    except ValueError:
        raise StartupError(f"--engine-endpoint {endpoint}: {rule}") from None
    if not complete:
        raise StartupError(f"--engine-endpoint {endpoint}: {rule}")
    if address.is_unspecified:
        raise StartupError(
            f"--engine-endpoint {endpoint}: would listen on every interface",
            hint="name the address of the interface that the clients use",
        )


def check_options(options: ServerOptions) -> None:
    """Raise StartupError if the options for `tcp://` do not fit together, or a file is not in order."""
    given = {
        "--engine-endpoint": options.engine_endpoint,
        "--curve-secret-key": options.curve_secret_key,
        "--curve-allowed-keys": options.curve_allowed_keys,
    }
    missing = [flag for flag, value in given.items() if not value]
    if len(missing) == len(given):
        return
    if missing:
        there = next(flag for flag, value in given.items() if value)
        raise StartupError(
            f"{there} needs {' and '.join(missing)}: tcp:// is served only to clients with an allowed key",
            hint="give all three (tern keys FILE makes a key), or none",
        )
    check_endpoint(options.engine_endpoint)
    for flag, read in (("--curve-secret-key", read_secret_key), ("--curve-allowed-keys", read_allowed_keys)):
        try:
            read(given[flag])
        except StartupError as error:
            raise StartupError(f"{flag} {error.message}", hint=error.hint) from None


_MAKE = "tern keys FILE makes FILE and FILE.pub"


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}", hint=_MAKE) from None
    except UnicodeDecodeError:
        raise StartupError(f"{path}: holds no key: {_RULE}", hint=_MAKE) from None
