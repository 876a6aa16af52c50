"""`tern bench`: runs one benchmark and prints a table that begins with the machine."""

import argparse
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from protocol.options import ModelOptions
from scripts.model_path import BUNDLED

from . import (
    context,
    kernels,
    machine,
    overhead,
    overload,
    quality,
    quantization,
    recover,
    rest,
    structured,
    throughput,
)
from .peers import compare
from .peers.environments import ENVIRONMENTS, OWN
from .stack import serving


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Options that this parser does not know are handed to `tern serve`."""
    options, serve_arguments = _parser().parse_known_args(argv)
    print(f"{machine.describe()}\n`tern bench {' '.join(argv)}`\n", flush=True)
    print(uvloop.run(_run(options, serve_arguments)))
    return 0


async def _run(options: argparse.Namespace, serve_arguments: list[str]) -> str:
    match options.benchmark:
        case "overhead":
            result = await overhead.measure(
                options.streams, options.tokens, options.repetitions, serve_arguments
            )
            return overhead.report(result, options.streams)
        case "model":
            points = await throughput.measure(
                options.model or str(BUNDLED),
                options.vocab_size,
                options.concurrency,
                options.prompt_tokens,
                options.tokens,
                options.repetitions,
                options.peer_threads,
                serve_arguments,
                peers=options.peers,
            )
            return throughput.report(points)
        case "peers":
            outcome = await compare.measure(
                options.folder,
                options.kinds,
                options.only,
                options.repetitions,
                options.threads,
                serve_arguments,
                functools.partial(print, flush=True),
            )
            return compare.report(outcome)
        case "structured":
            figures = await structured.measure(
                options.streams, options.tokens, options.repetitions, serve_arguments
            )
            return structured.report(figures)
        case "rest":
            return rest.measure(serve_arguments, options.seconds)
        case "recover":
            return await recover.measure(options.repetitions, options.goodput_seconds, serve_arguments)
        case "overload":
            refusals = await overload.measure(options.requests, options.at_once, serve_arguments)
            return overload.report(refusals)
        case "growth":
            arguments = ["--worker", "stub", *serve_arguments]
            return await rest.measure_growth(arguments, options.requests, 256)
        case "context":
            path = options.model or str(BUNDLED)
            growth = context.measure(
                ModelOptions(model=path, quantization=options.quantization),
                options.contexts,
                options.batches,
                options.steps,
                options.kv_gib << 30,
            )
            if options.plot is not None:
                options.plot.write_text(context.picture(growth, f"{Path(path).name}: a decoded token"))
            return context.report(growth)
        case "kernels":
            return kernels.report(kernels.measure(options.rows, options.repetitions))
        case "quantization":
            return quantization.report(quantization.measure(options.per_task))
        case _:
            with serving(serve_arguments) as stack:
                scores = await quality.measure(f"http://{stack.host}:{stack.port}", options.per_task)
            return quality.report(scores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tern bench",
        description="Further options are those of `tern serve`.",
        allow_abbrev=False,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)

    one = benchmarks.add_parser("overhead", help="what the stack itself costs, with the stub worker")
    one.add_argument("--streams", type=int, default=256)
    one.add_argument("--tokens", type=int, default=600, help="of each stream")
    one.add_argument("--repetitions", type=int, default=5)

    one = benchmarks.add_parser("model", help="a real model, beside transformers")
    one.add_argument("--model", default="")
    one.add_argument("--vocab-size", type=int, default=2048, help="prompts are random ids below it")
    one.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 128])
    one.add_argument("--prompt-tokens", type=int, default=64)
    one.add_argument("--tokens", type=int, default=128, help="of each answer")
    one.add_argument("--repetitions", type=int, default=3)
    one.add_argument("--peer-threads", type=int, default=os.cpu_count() or 1)
    one.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)

    one = benchmarks.add_parser("peers", help="other engines for CPUs on the same machine, in turn with ours")
    one.add_argument("folder", type=Path, help="keeps their environments and models; some 15 GB")
    one.add_argument("--kinds", nargs="+", choices=["bf16", "int8", "int4"], default=["bf16", "int8", "int4"])
    one.add_argument("--only", nargs="+", choices=[OWN, *ENVIRONMENTS], default=[], help="of the engines")
    one.add_argument("--repetitions", type=int, default=3)
    one.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the others")

    one = benchmarks.add_parser("structured", help="answers to a schema, beside free ones")
    one.add_argument("--streams", type=int, default=16)
    one.add_argument("--tokens", type=int, default=200, help="of each answer")
    one.add_argument("--repetitions", type=int, default=5)

    one = benchmarks.add_parser("rest", help="memory, idle CPU and time to ready")
    one.add_argument("--seconds", type=float, default=10)

    one = benchmarks.add_parser("recover", help="how long streams pause when something dies or hangs")
    one.add_argument("--repetitions", type=int, default=20, help="of each fault")
    one.add_argument("--goodput-seconds", type=float, default=120, help="with faults, and again without")

    one = benchmarks.add_parser("overload", help="how soon a full server refuses")
    one.add_argument("--requests", type=int, default=2000)
    one.add_argument(
        "--at-once", type=int, default=4, help="of these, beside 128 streams that fill the server"
    )

    one = benchmarks.add_parser("context", help="a decoded token's cost as contexts and batches grow")
    one.add_argument("--model", default="")
    one.add_argument("--quantization", default="none", choices=["none", "int8", "int4"])
    one.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048, 8192, 32768])
    one.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 128])
    one.add_argument("--steps", type=int, default=8, help="timed of each")
    one.add_argument("--kv-gib", type=int, default=8, help="memory for KV; what does not fit is left out")
    one.add_argument("--plot", type=Path, help="an SVG file to write")

    one = benchmarks.add_parser("kernels", help="matrix multiplication alone, beside torch's")
    one.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024], help="of activations")
    one.add_argument("--repetitions", type=int, default=7)

    one = benchmarks.add_parser("growth", help="memory over many requests, with the stub worker")
    one.add_argument("--requests", type=int, default=10_000)

    one = benchmarks.add_parser("quantization", help="what rounding the bundled model's weights costs")
    one.add_argument("--per-task", type=int, default=50)

    one = benchmarks.add_parser("quality", help="exact match on the bundled model's held-out prompts")
    one.add_argument("--per-task", type=int, default=50)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
