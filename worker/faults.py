"""Faults on purpose, for tests: those of a worker that cannot be brought about from outside.

TERN_FAULTS holds faults, separated by `;`, each `kind:trigger[,option…]`. Steps are this process's plans,
counted from 1; a token triggers in each step in which a sequence with that id in its prompt is scheduled.

    raise:token=77            the step raises, without a hint whose fault it is
    die:token=77              SIGABRT, as a library's assertion
    poison:token=77           an error that poisons the device's context
    nan:token=77              the sequence's row is a numerical error, and its KV is garbage
    oom:steps=5-6             out of memory in each of these steps
    hang:step=20              sleeps for ever
    hang_gil:step=20          the same in C, with the interpreter's lock held
    slow:step=20,factor=1.5   sleeps for so many budgets of the step
    kill:request=40           SIGKILL while weights are loaded, as the 40th request for tensors is next
    hold:file=PATH            goes no further than that file says, see hold.py

Options of all: `rank=1` (default: every rank) and `times=2`, how often it happens at most (default: once
for `step`, for `token` without end). TERN_FAULTS_DIR names a folder in which that is counted over all
incarnations; without it each process counts for itself. Works on any Runner, from plans and results.
"""

import ctypes
import itertools
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from msgspec import structs

from protocol import columns
from protocol.errors import NumericalError, StartupError
from protocol.messages import NO_TOKEN, EngineFacts
from protocol.steps import SequenceStart, StepPlan, StepResult

from .hold import Hold
from .launched import Done, Launched
from .step_budget import StepBudget
from .worker import MaskSource, Runner, carried

VARIABLE, FOLDER_VARIABLE = "TERN_FAULTS", "TERN_FAULTS_DIR"
TRIGGERS = {
    "raise": "token",
    "die": "token",
    "poison": "token",
    "nan": "token",
    "oom": "steps",
    "hang": "step",
    "hang_gil": "step",
    "slow": "step",
    "kill": "request",
    "hold": "file",
}


Report = Callable[[str, str, float | None], None]
"""As in weights.py, which needs torch."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


@dataclass(frozen=True)
class Fault:
    kind: str
    token: int | None
    steps: range
    """Or requests"""
    factor: float
    rank: int | None
    times: int | None
    """At most; None: without end"""
    mark: str
    """Name of the file in which it is counted."""
    file: Path | None = None
    """Of `hold`"""


def parse(text: str) -> list[Fault]:
    """The value of TERN_FAULTS. Raises StartupError naming what is wrong."""
    return [_parse(part.strip(), index) for index, part in enumerate(text.split(";")) if part.strip()]


def _parse(text: str, index: int) -> Fault:
    kind, _, rest = text.partition(":")
    if kind not in TRIGGERS:
        raise _refusal(text, f"the kinds are {', '.join(TRIGGERS)}")
    trigger = TRIGGERS[kind]
    options = dict(option.partition("=")[::2] for option in rest.split(","))
    known = {trigger, "rank", "times"} | ({"factor"} if kind == "slow" else set())
    if kind == "hold":
        known -= {"times"}
    if trigger not in options or options.keys() - known:
        raise _refusal(text, f"{kind} needs {trigger}=…, and may have {', '.join(sorted(known - {trigger}))}")
    try:
        first, _, last = options[trigger].partition("-")
        counted = trigger not in ("token", "file")
        steps = range(int(first), int(last or first) + 1) if counted else range(0)
        if (trigger in ("step", "request") and last) or (counted and not steps):
            raise ValueError
        return Fault(
            kind=kind,
            token=int(first) if trigger == "token" else None,
            steps=steps,
            factor=float(options.get("factor", "1")),
            rank=int(options["rank"]) if "rank" in options else None,
            times=int(options["times"]) if "times" in options else len(steps) or None,
            mark=f"{index}-{kind}",
            file=Path(options["file"]) if trigger == "file" else None,
        )
    except ValueError:
        raise _refusal(text, "its values are numbers, and steps=… is one, or FIRST-LAST") from None


def _refusal(text: str, rule: str) -> StartupError:
    return StartupError(f"{VARIABLE}: {text!r} is not a fault: {rule}", hint=f"correct or unset {VARIABLE}")


def faulty(
    runner: Runner, rank: int, budget: StepBudget, beat: Callable[[], None], environ: Mapping[str, str]
) -> Runner:
    """The runner itself, unless the environment asks for faults. Raises StartupError."""
    faults = [fault for fault in _asked(rank, environ) if fault.kind != "kill"]
    if not faults:
        return runner
    holds = [Hold(fault.file, beat) for fault in faults if fault.file is not None]
    others = [fault for fault in faults if fault.file is None]
    return FaultyRunner(runner, others, holds, budget, _counts(rank, environ))


def killed_while_loading(report: Report, rank: int, environ: Mapping[str, str]) -> Report:
    """The report itself, unless the environment asks for that. Raises StartupError."""
    faults = [fault for fault in _asked(rank, environ) if fault.kind == "kill"]
    if not faults:
        return report
    counts, requests = _counts(rank, environ), itertools.count(1)

    def kill(name: str, detail: str, fraction: float | None) -> None:
        report(name, detail, fraction)
        number = next(requests) if name == "loading weights" else 0
        if any(number in fault.steps and counts.spend(fault) for fault in faults):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _asked(rank: int, environ: Mapping[str, str]) -> list[Fault]:
    return [fault for fault in parse(environ.get(VARIABLE, "")) if fault.rank in (None, rank)]


def _counts(rank: int, environ: Mapping[str, str]) -> "Counts":
    """Of faults that will happen, which is said."""
    print(f"worker: warning: {VARIABLE} is set: {environ[VARIABLE]}", file=sys.stderr, flush=True)
    folder = environ.get(FOLDER_VARIABLE, "")
    if folder and not Path(folder).is_dir():
        raise StartupError(f"{FOLDER_VARIABLE}: {folder!r} is not a folder", hint="make it, or unset it")
    return Counts(Path(folder) if folder else None, rank)


class Counts:
    """How often each fault has happened."""

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._folder = folder
        self._rank = rank
        self._here: dict[str, int] = {}

    def spend(self, fault: Fault) -> bool:
        """Count it once more, before it happens. False: it has happened often enough."""
        if self._folder is None:
            count = self._here[fault.mark] = self._here.get(fault.mark, 0) + 1
        else:
            with open(self._folder / f"{fault.mark}-rank{self._rank}", "ab") as file:
                file.write(b".")
                file.flush()
                count = file.tell()
        return fault.times is None or count <= fault.times


@dataclass
class _Marked:
    """A resident sequence with a fault's token in its prompt."""

    tokens: set[int]
    """Those of its prompt that are some fault's."""
    tables: list[list[int]]
    """Of each KV group."""
    num_computed_tokens: int
    first_own: int
    """Place in the tables from which its KV depends on such a token, and was computed by itself."""


class FaultyRunner:
    """See worker.Runner, whose contract it keeps until a fault is due."""

    def __init__(
        self,
        runner: Runner,
        faults: Sequence[Fault],
        holds: Sequence[Hold],
        budget: StepBudget,
        counts: Counts,
    ) -> None:
        self.runner = runner
        self.facts: EngineFacts = runner.facts
        self.model_fingerprint = runner.model_fingerprint
        self.measured = runner.measured
        self._faults = faults
        self._holds = holds
        self._tokens = {fault.token for fault in faults} - {None}
        self._budget = budget
        self._counts = counts
        self._steps = 0
        self._marked: dict[int, _Marked] = {}
        self._acts: dict[str, Callable[[Fault], None]] = {
            "raise": _raise,
            "die": lambda _: os.abort(),
            "poison": _poison,
            "oom": _run_out_of_memory,
            "hang": _hang,
            "hang_gil": _hang_with_the_lock,
            "slow": lambda fault: time.sleep(fault.factor * budget.current_s),
        }

    def reset(self) -> None:
        self._marked.clear()
        self.runner.reset()

    def profile(self, start: bool) -> str:
        return self.runner.profile(start)

    def spoil(self, blocks: Sequence[int]) -> None:
        self.runner.spoil(blocks)

    def launch(self, plan: StepPlan, masks: MaskSource = carried) -> Launched:
        return Done(self.execute(plan, masks))

    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        for hold in self._holds:
            hold.wait()
        self._steps += 1
        self._follow(plan)
        slots = columns.unpack_ids(plan.scheduled_slots)
        sick: list[int] = []
        for fault in self._faults:
            rows = [row for row, slot in enumerate(slots) if self._concerns(fault, slot)]
            due = bool(rows) or self._steps in fault.steps
            if not due or not self._counts.spend(fault):
                continue
            if fault.kind == "nan":
                sick += rows
            else:
                self._acts[fault.kind](fault)
        result = self.runner.execute(plan, masks)
        for hold in self._holds:
            hold.count(result)
        if sick:
            result = self._sicken(result, sick, slots)
        for slot, count in zip(slots, columns.unpack_ids(plan.scheduled_counts), strict=True):
            if slot in self._marked:
                self._marked[slot].num_computed_tokens += count
        return result

    def _concerns(self, fault: Fault, slot: int) -> bool:
        return slot in self._marked and fault.token in self._marked[slot].tokens

    def _follow(self, plan: StepPlan) -> None:
        for slot in columns.unpack_ids(plan.released):
            self._marked.pop(slot, None)
        for start in plan.started:
            if marked := self._mark(start):
                self._marked[start.slot] = marked
        blocks, width = columns.unpack_ids(plan.grown_blocks), len(self.facts.kv_groups)
        for place, slot in enumerate(columns.unpack_ids(plan.grown_slots)):
            if slot in self._marked:
                for group, table in enumerate(self._marked[slot].tables):
                    table.append(blocks[place * width + group])

    def _mark(self, start: SequenceStart) -> _Marked | None:
        prompt = columns.unpack_ids(start.token_ids)[: start.num_prompt_tokens]
        places = [place for place, token in enumerate(prompt) if token in self._tokens]
        if not places:
            return None
        size, blocks = self.facts.block_size, list(columns.unpack_ids(start.block_tables))
        length = len(blocks) // len(self.facts.kv_groups)
        return _Marked(
            tokens={prompt[place] for place in places},
            tables=[blocks[i * length : (i + 1) * length] for i in range(len(self.facts.kv_groups))],
            num_computed_tokens=start.num_computed_tokens,
            first_own=max(places[0] // size, -(-start.num_computed_tokens // size)),
        )

    def _sicken(self, result: StepResult, rows: list[int], slots: "array[int]") -> StepResult:
        """The rows come to nothing, as if their logits were not finite, and their KV is spoilt."""
        for row in rows:
            marked = self._marked[slots[row]]
            for group, table in zip(self.facts.kv_groups, marked.tables, strict=True):
                first = group.first_block(marked.num_computed_tokens, self.facts.block_size)
                self.runner.spoil(table[max(marked.first_own, first) :])
        token_ids = columns.unpack_ids(result.token_ids)
        failed = dict(result.failed_rows)
        for row in rows:
            if token_ids[row] != NO_TOKEN or row in dict(result.embeddings):
                token_ids[row] = NO_TOKEN
                failed[row] = NumericalError.code
        return structs.replace(
            result,
            token_ids=token_ids.tobytes(),
            failed_rows=tuple(failed.items()),
            embeddings=tuple(one for one in result.embeddings if one[0] not in failed),
        )


def _raise(fault: Fault) -> NoReturn:
    raise RuntimeError(f"a fault on purpose: {fault.kind}")


def _poison(_: Fault) -> NoReturn:
    raise AcceleratorError("a fault on purpose: the device is lost")


def _run_out_of_memory(_: Fault) -> NoReturn:
    raise OutOfMemoryError("a fault on purpose: out of memory")


def _hang(_: Fault) -> NoReturn:
    while True:
        time.sleep(3600)


def _hang_with_the_lock(_: Fault) -> NoReturn:
    sleep = ctypes.PyDLL(None).sleep
    while True:
        sleep(3600)
