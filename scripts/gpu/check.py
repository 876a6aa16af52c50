"""`scripts/gpu_check`: everything that only a GPU can tell, most valuable first, in eight minutes.

    scripts/gpu_check [--only tests ceilings …] [--minutes 8] [--out docs/results]

Runs every test marked `gpu`, then the benchmarks, prints value, floor and ratio as they come, and writes
<gpu>-<date>.json. Needs no network: torch, triton and pytest must be there, see scripts/gpu_check for wheels.
Exit codes: 0 all ran · 1 a test failed · 2 there is no GPU here.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import triton

from . import benchmarks, decode
from .floors import Ceilings
from .results import HEAD, Measurement, Results

ROOT = Path(__file__).parents[2]
TESTS = ["tests/worker/kernels/triton"]
"""Where tests marked `gpu` are."""
NO_GPU = 2
PYTEST_INI = "[pytest]\npythonpath = {root}\nmarkers = gpu: needs an NVIDIA GPU\nfilterwarnings = error\n"
"""Of its own, as a GPU machine may lack the plugins that the whole suite wants."""

Subset = Callable[[Ceilings], Iterator[Measurement]]


def main(argv: Sequence[str]) -> int:
    subsets: Mapping[str, Subset] = {
        "graph_node": benchmarks.graph_node,
        "decode": decode.single_stream,
        "kernels": benchmarks.kernels,
        "batches": decode.batches,
    }
    options = _parser(["tests", "ceilings", *subsets]).parse_args(argv)
    if not torch.cuda.is_available():
        print(no_gpu(), file=sys.stderr)
        return NO_GPU
    results = Results(
        gpu=torch.cuda.get_device_name(),
        date=datetime.date.today().isoformat(),
        commit=_commit(),
        versions={"torch": torch.__version__, "triton": triton.__version__},
    )
    return run(results, subsets, benchmarks.ceilings, options.only, options.minutes * 60, Path(options.out))


def run(
    results: Results,
    subsets: Mapping[str, Subset],
    measure_ceilings: Callable[[], tuple[Ceilings, list[Measurement]]],
    only: Sequence[str],
    seconds: float,
    folder: Path,
    clock: Callable[[], float] = time.monotonic,
    run_tests: Callable[[float], tuple[bool, str]] | None = None,
) -> int:
    """All that is asked for and for which there is time; a subset that fails is named and left out.

    `only` empty: everything. Ceilings are always measured when a benchmark runs, as all its floors follow
    from them.
    """
    end = clock() + seconds
    passed = True
    if not only or "tests" in only:
        passed, results.tests = (run_tests or _tests)(seconds / 2)
        print(f"tests: {results.tests}", flush=True)
    wanted = {name: subset for name, subset in subsets.items() if not only or name in only}
    if wanted or "ceilings" in only:
        ceilings, found = measure_ceilings()
        print(HEAD, flush=True)
        _add(results, found)
        for name, subset in wanted.items():
            if clock() >= end:
                results.left_out[name] = "the time was up"
                continue
            _run_subset(results, name, subset(ceilings), end, clock)
            results.save(folder)
    path = results.save(folder)
    print(f"\n{results.table()}\n\nwritten to {path}", flush=True)
    return 0 if passed else 1


def no_gpu() -> str:
    """Why nothing can be checked here, and what to do instead."""
    built = torch.version.cuda or "no CUDA"
    return (
        f"gpu_check: no NVIDIA GPU can be used here (torch {torch.__version__}, built with {built}).\n"
        "Nothing was run and nothing was written. Without a GPU, kernels are checked by\n"
        "  TRITON_INTERPRET=1 python -m pytest tests/worker/kernels/triton     their results\n"
        "  scripts/aot_report                                                  that they compile"
    )


def _run_subset(
    results: Results, name: str, found: Iterator[Measurement], end: float, clock: Callable[[], float]
) -> None:
    try:
        for measurement in found:
            _add(results, [measurement])
            if clock() >= end:
                results.left_out[name] = "from here on: the time was up"
                return
    except Exception as error:  # one benchmark must not cost the others
        results.left_out[name] = f"from here on: {type(error).__name__}: {str(error)[:300]}"
        print(f"{name}: {results.left_out[name]}", flush=True)


def _add(results: Results, found: Sequence[Measurement]) -> None:
    for measurement in found:
        results.measurements.append(measurement)
        print(measurement.line(), flush=True)


def _tests(seconds: float) -> tuple[bool, str]:
    """(whether none failed, pytest's last line)"""
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as ini:
        ini.write(PYTEST_INI.format(root=ROOT))
        ini.flush()
        command = [sys.executable, "-m", "pytest", "-c", ini.name, "--rootdir", str(ROOT), "-m", "gpu", "-rf"]
        command += ["--import-mode=importlib", "-p", "no:cacheprovider", *TESTS]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False, f"not done within {seconds:.0f} s"
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-5_000:], flush=True)
    lines = done.stdout.strip().splitlines() or ["no output"]
    return done.returncode == 0, lines[-1].strip("= ")


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def _parser(subsets: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_check", allow_abbrev=False)
    parser.add_argument("--only", nargs="+", default=[], choices=subsets, help="subsets; default: all")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", default=str(ROOT / "docs/results"), help="folder of the results")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
