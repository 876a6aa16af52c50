"""API keys: those of the options and those of a file. Knows no requests."""

from pathlib import Path

from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions


def api_keys(options: FrontendOptions) -> tuple[str, ...]:
    """All keys that open; none: everything is open. Raises StartupError.

    Blank lines of the file do not count, nor those that begin with #. A file without a key stops the start,
    because it would open the server to all.
    """
    path = options.api_key_file
    if not path:
        return options.api_key
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartupError(
            f"--api-key-file {path}: cannot be read: {reason}",
            hint="name a text file with one key a line that the server may read",
        ) from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise StartupError(f"--api-key-file {path}: holds no key", hint="write one key a line")
    return options.api_key + keys
