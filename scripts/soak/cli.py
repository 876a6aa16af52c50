"""`tern soak`: its options; further ones are those of `tern serve`."""

import random
from collections.abc import Mapping, Sequence

import uvloop

from scripts.bench import machine
from scripts.command_options import SoakCommand
from scripts.flags import Command, parse_serve

from .soak import SERVE_DEFAULTS, Plan, run

SOAK = Command(
    "soak",
    "Serve under load and random faults, and check every answer. "
    "Without options of tern serve: the stub worker and two frontends.",
    SoakCommand,
    hands_on=True,
)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0 all was right, 1 something was not. Raises StartupError."""
    command, serve_arguments = SOAK.parse_own(argv, environ)
    parse_serve([*SERVE_DEFAULTS, *serve_arguments], environ)  # a mistake is told before anything starts
    asked = command.soak
    plan = Plan(
        minutes=asked.minutes,
        streams=asked.streams,
        fault_every_s=asked.fault_every,
        most_faults=asked.faults,
        references=asked.references,
        seed=random.randrange(1 << 31) if asked.seed is None else asked.seed,
    )
    print(f"{machine.describe()}\n`tern soak {' '.join(argv)}`, seed {plan.seed}\n", flush=True)
    return 0 if uvloop.run(run(plan, serve_arguments)) else 1
