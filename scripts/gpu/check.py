"""`scripts/gpu_check`: everything that only a GPU can tell, most valuable first, in eight minutes.

    scripts/gpu_check                          all parts
    scripts/gpu_check decode prefill           some, by name; --list names them
    scripts/gpu_check --rehearse               every part on the CPU at a tiny size: does it work here at all?

Prints value, floor, ratio and goal as they come, writes <gpu>-<date>.json after each, and
a table and plots at the end.
A step that fails is named there with its traceback, one for which there is no time is named, and the rest
goes on. Needs no network.
Exit codes: 0 all that was begun ran and passed · 1 something failed · 2 there is no GPU here.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .bench import Bench
from .jobs import ROOT, Device, Job
from .jobs import run as run_job
from .plan import ONLY_NAMED, PARTS, Step, steps
from .plots import plots
from .results import HEAD, Measurement, Results
from .server import Servers

NO_GPU = 2
CLOSING_S = 15.0
"""Of the time, for the last server's end, the table and the plots."""


def main(argv: Sequence[str]) -> int:
    began = time.monotonic()
    options = _parser().parse_args(argv)
    if options.list:
        print(listing(options.rehearse))
        return 0
    try:
        device = describe(options.rehearse)
    except RuntimeError as error:
        print(no_gpu(str(error)), file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory(prefix="tern-gpu-check-") as folder:
        out = options.out
        if not out:
            out = (
                tempfile.mkdtemp(prefix="tern-rehearsal-") if options.rehearse else str(ROOT / "docs/results")
            )
        results = Results(
            gpu=device.name,
            date=datetime.date.today().isoformat(),
            commit=options.commit or commit(),
            versions=device.versions,
        )
        servers = Servers(Path(folder), _server_arguments(options.rehearse))
        bench = Bench(options.rehearse, servers, Path(folder))
        wanted = chosen(steps(options.rehearse), options.parts)
        try:
            left = began + options.minutes * 60 - CLOSING_S - time.monotonic()
            return run(results, wanted, bench, left, Path(out))
        finally:
            servers.close()


def run(
    results: Results,
    wanted: Sequence[Step],
    bench: Bench,
    seconds: float,
    folder: Path,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Each step for which there is time, one after the other; the exit code."""
    end = clock() + seconds
    print(HEAD, flush=True)
    for step in wanted:
        left, needed = end - clock(), step.needs_s(bench.servers)
        if left < needed:
            results.left_out[step.name] = f"it takes some {needed:.0f} s, and {max(left, 0):.0f} s were left"
            continue
        limit_s = min(left, step.limit_s(bench.servers))
        stop = clock() + limit_s
        try:
            for measurement in step.measure(bench, limit_s):
                _add(results, measurement, folder)
                if clock() >= stop:
                    results.left_out[step.name] = f"from here on: it had {limit_s:.0f} s"
                    break
        except Exception as error:  # one step must not cost the others
            if said := bench.servers.said():
                error.add_note(f"the server wrote:\n{said}")
            results.fail(step.name, error)
            print(f"{step.name}: {results.failed[step.name]}", flush=True)
            bench.servers.stop()  # whatever state it is in
        results.save(folder)
    bench.servers.stop()
    path = results.save(folder)
    table = _write(results.stem(folder), ".md", results.table() + "\n")
    drawn = [_write(results.stem(folder), f"-{name}.svg", svg) for name, svg in plots(results)]
    print("", results.summary(), *(f"- written: {written}" for written in (path, table, *drawn)), sep="\n")
    return 1 if results.failed else 0


def chosen(every: Sequence[Step], parts: Sequence[str]) -> list[Step]:
    """The steps of these parts, none: of all that need not be named. Ceilings always, as floors need them."""
    names = set(parts) or set(PARTS) - set(ONLY_NAMED)
    if names - {"tests", "tune"}:
        names.add("ceilings")
    return [step for step in every if step.part in names]


def describe(rehearsal: bool) -> Device:
    """Raises RuntimeError where there is no device."""
    for found in run_job(Job(what="device", rehearsal=rehearsal, limit_s=120)):
        if found.device is not None:
            return found.device
    raise RuntimeError("torch says nothing about the device")


def no_gpu(why: str) -> str:
    """Why nothing can be checked here, and what to do instead."""
    return (
        f"gpu_check: no NVIDIA GPU can be used here: {why}\n"
        "Nothing was run and nothing was written. Without a GPU,\n"
        "  TRITON_INTERPRET=1 python -m pytest tests/worker/kernels/triton     checks the kernels' results\n"
        "  scripts/aot_report                                                  that they compile\n"
        "  scripts/gpu_check --rehearse                                        that this command works"
    )


def listing(rehearsal: bool) -> str:
    """What runs, in order."""
    lines = ["Parts:", *(f"  {name:<10}{about}" for name, about in PARTS.items()), "", "Steps, in order:"]
    lines += [f"  {step.part:<10}{step.name:<34}some {step.expected_s:.0f} s" for step in steps(rehearsal)]
    return "\n".join(lines)


def commit() -> str:
    """Of this tree; "unknown" where it was copied without its history."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    found = head.stdout.strip()
    return f"{found}{' with changes' if changed.stdout.strip() else ''}" if found else "unknown"


def _server_arguments(rehearsal: bool) -> list[str]:
    common = ["--log-level", "warning", "--status-interval", "0", "--max-num-seqs", "256"]
    if rehearsal:
        return [
            *common,
            "--device",
            "cpu",
            "--threads",
            "1",
            "--max-model-len",
            "512",
            "--num-kv-blocks",
            "200",
        ]
    return [*common, "--device", "cuda", "--max-model-len", "20480", "--max-num-batched-tokens", "8192"]


def _add(results: Results, measurement: Measurement, folder: Path) -> None:
    results.measurements.append(measurement)
    print(measurement.line(), flush=True)
    results.save(folder)


def _write(stem: Path, ending: str, text: str) -> Path:
    path = stem.with_name(stem.name + ending)
    path.write_text(text)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS], help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="say what would be run, in order")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, everything at a tiny size")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all may take (default: 8)")
    parser.add_argument(
        "--out", default="", help="folder of the results (default: docs/results; of a rehearsal: a new one)"
    )
    parser.add_argument("--commit", default="", help="of a tree that was copied without its history")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
