"""`tern`: finds the command, and turns errors into one line and an exit code.

Commands are imported when they are called: `tern serve` stays small because it never sees the others.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from protocol.errors import StartupError

from .options import did_you_mean
from .terminal import Terminal
from .version import version

USAGE = """\
usage: tern COMMAND [options]

  serve       serve a model behind the OpenAI API   (tern serve --help)
  chat        talk to a running server              (tern chat --help)
  complete    complete a text                       (tern complete --help)
  generate    answer a file of prompts              (tern generate --help)
  doctor      say what will work on this machine    (tern doctor --help)
  bench       measure a server                      (tern bench lists benchmarks)
  replay      run a journal again, token for token  (tern replay --help)
  soak        serve under load and random faults    (tern soak --help)
  keys        make a key pair for tcp://            (tern keys --help)
  completion  print a script that completes commands and options: bash, zsh or fish
  version     print the version
"""
COMMANDS = {
    "serve": "scripts.serve",
    "chat": "scripts.chat",
    "complete": "scripts.complete",
    "generate": "scripts.generate",
    "doctor": "scripts.doctor",
    "bench": "scripts.bench.cli",
    "replay": "scripts.replay",
    "soak": "scripts.soak.cli",
    "keys": "scripts.keys",
    "completion": "scripts.completion",
}
"""Modules with a `main(argv, environ) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 78 a mistake in the options, 130 after Ctrl-C; see the commands for more."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["help"]
    try:
        match command.lstrip("-"):
            case "version" | "V":
                print(version())
            case "help" | "h":
                print(USAGE, end="")
            case _ if command in COMMANDS:
                code: int = importlib.import_module(COMMANDS[command]).main(rest, os.environ)
                return code
            case _:
                known = did_you_mean(command, [*COMMANDS, "version", "help"])
                raise StartupError(
                    f"unknown command {command}{known}", hint="tern --help lists what there is"
                )
    except StartupError as error:
        Terminal(os.environ).fail(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
