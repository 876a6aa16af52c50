"""Which Tern this is."""

import importlib
import tomllib

from .process import PACKAGES


def version() -> str:
    """Of the checkout that this is, else of the installed package."""
    try:
        with open(PACKAGES / "pyproject.toml", "rb") as file:
            return str(tomllib.load(file)["project"]["version"])
    except FileNotFoundError:
        # Only now: it costs the supervisor 2 MB.
        return str(importlib.import_module("importlib.metadata").version("tern"))
