"""Where a server writes besides its run folder: the journal, and reports of crashes.

Found to be impossible now, not when the first crash is to be reported. Writes nothing itself.
"""

import os

import msgspec

from protocol.errors import StartupError
from protocol.options import DEFAULT_CRASH_DIR, ServerOptions


def resolve(options: ServerOptions) -> ServerOptions:
    """The same options with absolute paths that can be written; makes the folder asked for. StartupError."""
    journal, crash_dir = _absolute(options.journal), _absolute(options.crash_dir)
    if journal:
        _check_folder("--journal", os.path.dirname(journal))
        if os.path.isdir(journal):
            raise StartupError(f"--journal {journal}: is a folder", hint="name a file")
        if os.path.exists(journal) and not os.access(journal, os.W_OK):
            raise StartupError(f"--journal {journal}: cannot be written", hint="name another file")
    if crash_dir and options.crash_dir != DEFAULT_CRASH_DIR:  # nobody asked for that one: best effort
        try:
            os.makedirs(crash_dir, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StartupError(f"--crash-dir {crash_dir}: cannot be made: {error.strerror}") from None
        _check_folder("--crash-dir", crash_dir)
    return msgspec.structs.replace(options, journal=journal, crash_dir=crash_dir)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _check_folder(flag: str, folder: str) -> None:
    if not os.path.isdir(folder):
        raise StartupError(f"{flag}: there is no folder {folder}", hint="make it, or name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartupError(f"{flag}: the folder {folder} cannot be written", hint="name another")
