"""LoRA adapters as `--lora NAME=FOLDER` names them. Knows nothing of what is in a folder.

The name is what clients ask for as `model`, what a Submit carries as `adapter`, and what the prefix cache
tells prefixes apart by; the folder concerns only the supervisor and the workers.
"""

from collections.abc import Iterator, Sequence

from .errors import StartupError

MOST_ADAPTERS = 256
MOST_NAME_CHARS = 256
"""As a Label may have."""


def adapter_folders(given: Sequence[str], model_names: Sequence[str] = ()) -> dict[str, str]:
    """name → folder, in the order given. Raises StartupError for what is no NAME=FOLDER, for a name that is
    taken, by another adapter or by the model (`model_names`), and for more than MOST_ADAPTERS."""
    folders: dict[str, str] = {}
    for name, folder in _pairs(given):
        if name in folders:
            raise StartupError(
                f"--lora {name}={folder}: {name!r} is {folders[name]} already",
                hint="give each adapter its own name",
            )
        if name in model_names:
            raise StartupError(
                f"--lora {name}={folder}: {name!r} is the name of the model itself",
                hint="give the adapter another name, or the model with --served-model-name",
            )
        folders[name] = folder
    if len(folders) > MOST_ADAPTERS:
        raise StartupError(f"--lora: {len(folders)} adapters; at most {MOST_ADAPTERS} are served at once")
    return folders


def adapter_names(given: Sequence[str]) -> tuple[str, ...]:
    """Of options that have been checked."""
    return tuple(name for name, _ in _pairs(given))


def _pairs(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder) or len(name) > MOST_NAME_CHARS or name != name.strip():
            raise StartupError(
                f"--lora {entry}: expected NAME=FOLDER",
                hint="such as --lora sql=adapters/sql; requests choose it with model: sql",
            )
        yield name, folder
