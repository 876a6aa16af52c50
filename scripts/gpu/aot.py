"""Compiles every kernel for every target without a device, and writes what each takes to docs/gpu-kernels.md.

    scripts/aot_report [--targets 80 89 90 100] [--only decode_attention] [--out FILE]

Exit code 1 when a kernel does not compile, or takes more than a target has.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton

from . import occupancy
from .compile import Launch, Resources, compile_for, record
from .variants import Variant, variants

PAGE = Path(__file__).parents[2] / "docs/gpu-kernels.md"
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one block may have (CUDA C++ Programming Guide, compute capabilities)."""
MOST_STACK_BYTES = 64
"""Of each thread in local memory. What little ptxas puts there now and then stays in the first cache."""


class Row(NamedTuple):
    kernel: str
    label: str
    found: Mapping[int, Resources | str]
    """By target; a string: why it was not compiled."""


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    rows = list(compile_all(variants(), options.targets, options.only, options.jobs))
    text = page(rows, options.targets)
    if not options.only:
        text += "\n".join(["", *occupancy.table(options.jobs), ""])
    Path(options.out).write_text(text)
    wrong = [line for row in rows for line in problems(row)]
    print(f"{len(rows)} variants for {len(options.targets)} targets → {options.out}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


def compile_all(wanted: Iterable[Variant], targets: Sequence[int], only: str, jobs: int) -> Iterator[Row]:
    """Each kernel once for each way in which it is specialized."""
    seen: list[Launch] = []
    todo: list[tuple[str, Launch, int]] = []
    for variant in wanted:
        for launch in record(variant.call):
            if only in launch.name and launch not in seen:
                seen.append(launch)
                todo.append((variant.label, launch, variant.least_capability))
    with ProcessPoolExecutor(jobs) as pool:
        futures = [
            {target: pool.submit(_compile, launch, target) for target in targets if target >= least}
            for _, launch, least in todo
        ]
        for (label, launch, least), ours in zip(todo, futures, strict=True):
            absent = {target: f"needs sm_{least}" for target in targets if target < least}
            yield Row(
                launch.name, label, absent | {target: future.result() for target, future in ours.items()}
            )


def problems(row: Row) -> Iterator[str]:
    """What is wrong with a variant."""
    for target, found in row.found.items():
        where = f"{row.kernel} ({row.label}) for sm_{target}"
        if isinstance(found, str):
            if not found.startswith("needs"):
                yield f"{where}: {found}"
            continue
        if found.stack_bytes > MOST_STACK_BYTES:
            yield f"{where}: {found.stack_bytes} bytes of each thread are not in registers"
        if found.shared_bytes > SHARED_LIMIT[target]:
            yield f"{where}: {found.shared_bytes} bytes of shared memory; there are {SHARED_LIMIT[target]}"


def page(rows: Sequence[Row], targets: Sequence[int]) -> str:
    """docs/gpu-kernels.md"""
    head = " | ".join(f"sm_{target}" for target in targets)
    lines = [
        "# What each GPU kernel takes",
        "",
        "Made by `scripts/aot_report`; do not edit. Triton compiles every kernel as the models named in",
        "`scripts/gpu/variants.py` launch it, for four kinds of GPU: sm_80 (such as A100), sm_89 (L40S,",
        "RTX 4090), sm_90 (H100) and sm_100 (B200). That takes none:",
        "**they compile; nothing here was run on a GPU.**",
        "",
        f"A cell, of Triton {triton.__version__}, says: registers of a thread · KiB of shared memory of a",
        "block · warps of a block (32 threads each). The less a block takes, the more of them run at once.",
        "`+n B` are bytes of a thread for which there was no register (a thread has 255), and which go",
        f"through slower memory. The report fails beyond {MOST_STACK_BYTES} such bytes, or the shared memory",
        "that a block can have: "
        + ", ".join(f"{SHARED_LIMIT[target] / 1024:.0f} KiB (sm_{target})" for target in targets)
        + ".",
        "",
        f"| kernel | variant | {head} |",
        "|---|---|" + "---|" * len(targets),
    ]
    for row in rows:
        cells = " | ".join(_cell(row.found[target]) for target in targets)
        lines.append(f"| {row.kernel} | {row.label} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(found: Resources | str) -> str:
    if isinstance(found, str):
        return found
    spilled = f" +{found.stack_bytes} B" if found.stack_bytes else ""
    return f"{found.registers} · {found.shared_bytes / 1024:.1f} · {found.num_warps}{spilled}"


def _compile(launch: Launch, target: int) -> Resources | str:
    try:
        return compile_for(launch, target)
    except Exception as error:  # whatever the compilers raise is the finding
        return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aot_report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[80, 89, 90, 100], choices=list(SHARED_LIMIT)
    )
    parser.add_argument("--only", default="", help="part of a kernel's name")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once")
    parser.add_argument("--out", default=str(PAGE))
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
