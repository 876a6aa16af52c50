"""Which folder a model's name means: a path, a hub id in the local cache, or the bundled model.

Knows where checkpoints lie, and nothing of what is in them beyond the presence of config.json.
"""

import fnmatch
import os
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from protocol.config import ModelOptions
from protocol.errors import StartupError

from .process import PACKAGES

BUNDLED = PACKAGES / "models" / "tern-mini"
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""What is ever read of a checkpoint. Neither pickles nor code."""
DOWNLOAD = """
import sys
import huggingface_hub
try:
    huggingface_hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])
except Exception as error:
    sys.exit(print(error) or 1)
"""


def resolve(options: ModelOptions, environ: Mapping[str, str]) -> ModelOptions:
    """The same options with folders for names, and with a served name. Raises StartupError."""
    if options.model:
        folder, name = _folder("--model", options.model, environ)
    elif (BUNDLED / "config.json").is_file():
        folder, name = str(BUNDLED), BUNDLED.name
    else:
        raise StartupError(
            f"no --model was given, and the bundled model is not at {BUNDLED}",
            hint="name a checkpoint folder or a hub id with --model, or run from a clone of the repository",
        )
    tokenizer = _folder("--tokenizer", options.tokenizer, environ)[0] if options.tokenizer else ""
    names = options.served_model_name or (name,)
    return msgspec.structs.replace(options, model=folder, tokenizer=tokenizer, served_model_name=names)


def _folder(flag: str, given: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """(absolute folder, name by which it goes)."""
    needed = ("config.json", "*.safetensors") if flag == "--model" else ("tokenizer.json",)
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, needed[0])):
            raise StartupError(
                f"{flag} {given}: the folder has no {needed[0]}",
                hint="it must be a checkpoint in Hugging Face's layout",
            )
        return path, os.path.basename(path)
    if not _is_hub_id(given):
        raise StartupError(
            f"{flag} {given}: no such folder",
            hint="give a checkpoint folder, or a hub id like organization/name",
        )
    snapshot = _cached_snapshot(given, needed, environ) or _download(flag, given, needed, environ)
    return snapshot, given


def _is_hub_id(given: str) -> bool:
    parts = given.split("/")
    return len(parts) == 2 and all(
        part.strip(".") and all(letter.isalnum() or letter in "-_." for letter in part) for part in parts
    )


def _cached_snapshot(hub_id: str, needed: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """The folder that the cache's `main` points to, if it holds what is needed; else nothing."""
    default = os.path.join(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    home = environ.get("HF_HOME") or default
    cache = os.path.expanduser(environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    repository = os.path.join(cache, f"models--{hub_id.replace('/', '--')}")
    try:
        with open(os.path.join(repository, "refs", "main")) as file:
            snapshot = os.path.join(repository, "snapshots", file.read().strip())
        names = os.listdir(snapshot)
    except OSError:
        return ""
    return snapshot if all(fnmatch.filter(names, pattern) for pattern in needed) else ""


def _download(flag: str, hub_id: str, needed: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """In a process of its own, because the client's libraries would stay in the supervisor's memory."""
    print(f"tern: {hub_id} is not in the local cache: downloading it", file=sys.stderr, flush=True)
    command = [sys.executable, "-P", "-c", DOWNLOAD, hub_id, *PATTERNS]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    snapshot = _cached_snapshot(hub_id, needed, environ)
    if not snapshot:
        reason = " ".join(done.stdout.split()) or f"it has no {' or no '.join(needed)}"
        raise StartupError(
            f"{flag} {hub_id}: neither a folder, nor in the local cache, nor to be downloaded: {reason}",
            hint="give the folder of a checkpoint; gated models need HF_TOKEN",
        )
    return snapshot
