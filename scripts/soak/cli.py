"""`tern soak`: its options; further ones are those of `tern serve`."""

import argparse
import math
import random
from collections.abc import Mapping, Sequence

import uvloop

from scripts.bench import machine
from scripts.flags import Parser, parse_serve

from .soak import SERVE_DEFAULTS, Plan, run


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0 all was right, 1 something was not. Raises StartupError."""
    given, serve_arguments = parser().parse_known_args(argv)
    parse_serve([*SERVE_DEFAULTS, *serve_arguments], environ)  # a mistake is told before anything starts
    plan = Plan(
        minutes=given.minutes,
        streams=given.streams,
        fault_every_s=given.fault_every,
        most_faults=given.faults,
        references=given.references,
        seed=random.randrange(1 << 31) if given.seed is None else given.seed,
    )
    print(f"{machine.describe()}\n`tern soak {' '.join(argv)}`, seed {plan.seed}\n", flush=True)
    return 0 if uvloop.run(run(plan, serve_arguments)) else 1


def parser() -> Parser:
    """Of everything that is not the server's."""
    found = Parser(
        prog="tern soak",
        description="Serve under load and random faults, and check every answer. "
        "Further options are those of `tern serve`; without one, the stub worker and two frontends.",
        allow_abbrev=False,
    )
    found.add_argument("--minutes", type=_positive, default=60, help="default 60")
    found.add_argument("--streams", type=_count, default=256, help="open at any time; default 256")
    found.add_argument("--fault-every", type=_positive, default=20, help="seconds; default 20")
    found.add_argument("--faults", type=int, default=0, help="end after so many; default 0: any number")
    found.add_argument("--references", type=_count, default=200, help="distinct questions; default 200")
    found.add_argument("--seed", type=int, help="of questions, users and faults; default: drawn, and told")
    return found


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number over 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value
