"""`tern bench NAME`: one command for each benchmark, without what it takes to run it."""

import inspect
from typing import Any

from scripts.command_options import BENCH_COMMANDS
from scripts.flags import Command

from .options import BENCHMARKS

WITHOUT_A_SERVER = {"context", "kernels", "quantization"}
COMMANDS: dict[str, Command[Any]] = {
    name: Command(
        f"bench {name}",
        inspect.getdoc(kind) or "",
        BENCH_COMMANDS[name],
        positional="folder" if name == "peers" else "",
        hands_on=name not in WITHOUT_A_SERVER,
    )
    for name, kind in BENCHMARKS.items()
}


def usage() -> str:
    """All benchmarks, one a line."""
    lines = [f"  {name:<13}{command.description.rstrip('.')}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: tern bench NAME [options] [options of tern serve]", "", *lines, ""])
