"""Which folder a model's name means: a path, a hub id in the local cache, or the bundled model.

Knows where checkpoints lie, and nothing of what is in them beyond the presence of config.json.
"""

import fnmatch
import os
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from protocol.adapters import adapter_folders
from protocol.errors import StartupError
from protocol.options import ModelOptions
from worker.memory import available_memory

from .memory_plan import most_download_bytes
from .process import PACKAGES

BUNDLED = PACKAGES / "models" / "tern-mini"
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""What is ever read of a checkpoint. Neither pickles nor code."""
NEEDED = {
    "--model": ("config.json", "*.safetensors"),
    "--tokenizer": ("tokenizer.json",),
    "--lora": ("adapter_config.json", "adapter_model.safetensors"),
}
"""What a folder must have; of a model's that lies here, the weights are not looked for yet."""
_LAYOUT = "it must be a checkpoint in Hugging Face's layout"
HINTS = {
    "--model": _LAYOUT,
    "--tokenizer": _LAYOUT,
    "--lora": "it must be an adapter as PEFT's save_pretrained writes it, in safetensors: pickles, such as "
    "adapter_model.bin, are never read",
}
DOWNLOAD = """
import os
import shutil
import sys
import huggingface_hub
from huggingface_hub.constants import HF_HUB_CACHE

def gib(count):
    return f"{count / 2**30:.1f} GiB"

hub_id, most, *patterns = sys.argv[1:]
try:
    files = huggingface_hub.HfApi().model_info(hub_id, files_metadata=True).siblings
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    if size > int(most):
        sys.exit(print(f"its weights take {gib(size)}, more than memory holds, see --quantization") or 1)
    folder = HF_HUB_CACHE
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if size > shutil.disk_usage(folder).free:
        sys.exit(print(f"its weights take {gib(size)}, more than is free at {HF_HUB_CACHE} (HF_HOME)") or 1)
    huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns)
except Exception as error:
    sys.exit(print(error) or 1)
"""
"""Sizes first: what cannot fit is not fetched."""


def resolve(options: ModelOptions, environ: Mapping[str, str]) -> ModelOptions:
    """The same options with folders for names, and with a served name. Raises StartupError."""
    if options.model:
        most = most_download_bytes(options, available_memory())
        folder, name = _folder("--model", options.model, environ, most)
    elif (BUNDLED / "config.json").is_file():
        folder, name = str(BUNDLED), BUNDLED.name
    else:
        raise StartupError(
            f"no --model was given, and the bundled model is not at {BUNDLED}",
            hint="name a checkpoint folder or a hub id with --model, or run from a clone of the repository",
        )
    tokenizer = _folder("--tokenizer", options.tokenizer, environ, 1 << 40)[0] if options.tokenizer else ""
    names = options.served_model_name or (name,)
    adapters = adapter_folders(options.lora, names)
    lora = tuple(
        f"{name}={_folder('--lora', given, environ, 1 << 40)[0]}" for name, given in adapters.items()
    )
    return msgspec.structs.replace(
        options, model=folder, tokenizer=tokenizer, served_model_name=names, lora=lora
    )


def _folder(flag: str, given: str, environ: Mapping[str, str], most_bytes: int) -> tuple[str, str]:
    """(absolute folder, name by which it goes). Weights of more than `most_bytes` are not downloaded."""
    needed = NEEDED[flag]
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        for name in needed[:1] if flag == "--model" else needed:
            if not os.path.isfile(os.path.join(path, name)):
                raise StartupError(f"{flag} {given}: the folder has no {name}", hint=HINTS[flag])
        return path, os.path.basename(path)
    if not is_hub_id(given):
        raise StartupError(
            f"{flag} {given}: no such folder",
            hint="give a checkpoint folder, or a hub id like organization/name",
        )
    snapshot = cached_snapshot(given, needed, environ) or _download(flag, given, needed, environ, most_bytes)
    return snapshot, given


def is_hub_id(given: str) -> bool:
    parts = given.split("/")
    return len(parts) == 2 and all(
        part.strip(".") and all(letter.isalnum() or letter in "-_." for letter in part) for part in parts
    )


def cached_snapshot(hub_id: str, needed: tuple[str, ...], environ: Mapping[str, str]) -> str:
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


def _download(
    flag: str, hub_id: str, needed: tuple[str, ...], environ: Mapping[str, str], most_bytes: int
) -> str:
    """In a process of its own, because the client's libraries would stay in the supervisor's memory."""
    print(f"tern: {hub_id} is not in the local cache: downloading it", file=sys.stderr, flush=True)
    command = [sys.executable, "-P", "-c", DOWNLOAD, hub_id, str(most_bytes), *PATTERNS]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    snapshot = cached_snapshot(hub_id, needed, environ)
    if not snapshot:
        reason = " ".join(done.stdout.split()) or f"it has no {' or no '.join(needed)}"
        raise StartupError(
            f"{flag} {hub_id}: neither a folder, nor in the local cache, nor to be downloaded: {reason}",
            hint="give the folder of a checkpoint; gated models need HF_TOKEN",
        )
    return snapshot
