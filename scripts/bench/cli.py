"""`tern bench`: runs one benchmark and prints a table that begins with the machine."""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_never

import uvloop

from protocol.errors import StartupError
from protocol.options import CacheOptions, ModelOptions
from scripts.flags import parse_serve
from scripts.model_path import BUNDLED
from scripts.options import did_you_mean

from . import (
    context,
    kernels,
    machine,
    options,
    overhead,
    overload,
    quality,
    quantization,
    recover,
    rest,
    structured,
    throughput,
)
from .commands import COMMANDS, usage
from .peers import compare
from .peers.environments import ENVIRONMENTS, OWN
from .stack import serving


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0, with a table printed. Options that a benchmark does not know are `tern serve`'s. StartupError."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        raise StartupError(
            f"unknown benchmark {name}{did_you_mean(name, COMMANDS)}", hint="tern bench lists what there is"
        )
    command, serve_arguments = COMMANDS[name], list[str]()
    if command.hands_on:
        root, serve_arguments = command.parse_own(rest, environ)
        parse_serve(serve_arguments, environ)  # a mistake is told before anything starts
    else:
        root, _ = command.parse(rest, environ)
    asked: options.Benchmark = getattr(root, f"bench_{name}")
    if isinstance(asked, options.Peers):
        _check_peers(asked)
    print(f"{machine.describe()}\n`tern bench {' '.join(argv)}`\n", flush=True)
    print(uvloop.run(_run(asked, serve_arguments)))
    return 0


async def _run(asked: options.Benchmark, serve_arguments: list[str]) -> str:
    match asked:
        case options.Overhead():
            result = await overhead.measure(asked.streams, asked.tokens, asked.repetitions, serve_arguments)
            return overhead.report(result, asked.streams)
        case options.Model():
            points = await throughput.measure(
                asked.model or str(BUNDLED),
                asked.vocab_size,
                asked.concurrency,
                asked.prompt_tokens,
                asked.tokens,
                asked.repetitions,
                asked.peer_threads or os.cpu_count() or 1,
                serve_arguments,
                peers=asked.peers,
            )
            return throughput.report(points)
        case options.Peers():
            outcome = await compare.measure(
                Path(asked.folder),
                asked.kinds,
                asked.only,
                asked.repetitions,
                asked.threads or os.cpu_count() or 1,
                serve_arguments,
                functools.partial(print, flush=True),
            )
            return compare.report(outcome)
        case options.Structured():
            figures = await structured.measure(
                asked.streams, asked.tokens, asked.repetitions, serve_arguments
            )
            return structured.report(figures)
        case options.Rest():
            return rest.measure(serve_arguments, asked.seconds)
        case options.Recover():
            return await recover.measure(asked.repetitions, asked.goodput_seconds, serve_arguments)
        case options.Restart():
            return await recover.measure_restart(asked.repetitions, serve_arguments)
        case options.Overload():
            refusals = await overload.measure(asked.requests, asked.at_once, serve_arguments)
            return overload.report(refusals)
        case options.Growth():
            return await rest.measure_growth(["--worker", "stub", *serve_arguments], asked.requests, 256)
        case options.Context():
            return _context(asked)
        case options.Kernels():
            return kernels.report(kernels.measure(asked.rows, asked.repetitions))
        case options.Quantization():
            return quantization.report(quantization.measure(asked.per_task))
        case options.Quality():
            with serving(serve_arguments) as stack:
                scores = await quality.measure(f"http://{stack.host}:{stack.port}", asked.per_task)
            return quality.report(scores)
        case _:
            assert_never(asked)


def _context(asked: options.Context) -> str:
    path = asked.model or str(BUNDLED)
    growth = context.measure(
        ModelOptions(model=path, quantization=asked.quantization),
        asked.contexts,
        asked.batches,
        asked.steps,
        CacheOptions(kv_cache_memory=asked.kv_gib << 30, kv_cache_dtype=asked.kv_cache_dtype),
    )
    if asked.plot:
        Path(asked.plot).write_text(context.picture(growth, f"{Path(path).name}: a decoded token"))
    return context.report(growth)


def _check_peers(asked: options.Peers) -> None:
    if not asked.folder:
        raise StartupError(
            "the folder for the engines' environments is missing", hint="tern bench peers FOLDER"
        )
    engines = [OWN, *ENVIRONMENTS]
    for name in asked.only:
        if name not in engines:
            raise StartupError(
                f"--only {name}: expected one of {', '.join(engines)}{did_you_mean(name, engines)}"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
