"""Soak: load, faults and watching together, from the first question to the verdict."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.client import EngineClient
from protocol.errors import TernError
from scripts.bench.load import percentile
from scripts.bench.stack import Stack, serving

from .faults import Faults
from .questions import draw
from .tally import Tally
from .users import Users
from .vitals import MOST_OPEN_FILES, Vitals, open_files_at_rest

REST_DEADLINE_S = 60.0
"""For the last blocks to come back, once nobody asks any more."""
_LEARN_AT_ONCE = 32
_DIRECT_SHARE = 8
"""One user in so many attaches to the engine core itself."""
_SAMPLE_EVERY_S = 2.0
_REST_LOOK_S = 0.1
SERVE_DEFAULTS = (
    *("--worker", "stub", "--frontends", "2", "--max-restarts", "1000000"),
    *("--receive-timeout", "300"),  # our users may starve as the server does, between connecting and asking
)
"""Given before the caller's own, which win."""


@dataclass(frozen=True)
class Plan:
    """How long, how much, how bad."""

    minutes: float
    streams: int
    fault_every_s: float
    most_faults: int
    """End after so many, if the time is not over before; 0: any number."""
    references: int
    seed: int
    report_every_s: float = 30.0


class Soak:
    """One run against one server."""

    def __init__(self, plan: Plan, stack: Stack) -> None:
        self._plan = plan
        self._stack = stack
        self._generator = random.Random(plan.seed)
        self.tally = Tally()
        self.faults = Faults(stack, self.tally, random.Random(plan.seed + 1))
        self.vitals = Vitals()
        self._users = Users(
            stack.host,
            stack.port,
            str(Path(stack.run_dir, "endpoint")),
            self.tally,
            self.faults.frontend_died_since,
        )
        self._began = time.monotonic()
        self._restarts: Counter[str] = Counter()

    async def run(self) -> None:
        """From reference answers to rest."""
        plan = self._plan
        references = await self._users.learn(draw(plan.references, self._generator), _LEARN_AT_ONCE)
        await self._rest()
        files_before = open_files_at_rest(self._stack.pids)
        self._began = time.monotonic()
        users = [
            asyncio.create_task(
                self._users.run(references, self._generator.randrange(1 << 31), direct=i % _DIRECT_SHARE == 0)
            )
            for i in range(plan.streams)
        ]
        watching = [asyncio.create_task(self._watch()), asyncio.create_task(self._tell())]
        await self._bring_faults()
        self._users.stopping.set()
        await asyncio.gather(*users)
        for task in watching:
            task.cancel()
        await self._rest()
        files_after = open_files_at_rest(self._stack.pids)
        self._judge(files_before, files_after)

    async def _bring_faults(self) -> None:
        plan = self._plan
        end = self._began + plan.minutes * 60
        due = self._began
        while (due := max(due + plan.fault_every_s, time.monotonic())) < end:
            await asyncio.sleep(due - time.monotonic())
            await self.faults.one()
            if self.faults.done.total() == plan.most_faults:
                return
        await asyncio.sleep(max(end - time.monotonic(), 0))

    async def _watch(self) -> None:
        while True:
            self.vitals.look(self._stack.pids, self.tally.requests)
            await asyncio.sleep(_SAMPLE_EVERY_S)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._plan.report_every_s)
            print(self.line(), flush=True)

    def line(self) -> str:
        """How it stands."""
        tally, seconds = self.tally, time.monotonic() - self._began
        return (
            f"{seconds:7.0f} s  {tally.requests:,} answers, {tally.tokens:,} tokens, "
            f"{self.faults.done.total()} faults; {tally.resumed} resumed, {tally.broken} broken with their "
            f"frontend; {tally.wrong.total()} wrong"
        )

    # ── at the end ──────────────────────────────────────────────────────────────────────────────

    async def _rest(self) -> None:
        """Until nothing runs or waits and every block is back."""
        stats = "no answer"
        try:
            async with asyncio.timeout(REST_DEADLINE_S):
                client = await EngineClient.attach(str(Path(self._stack.run_dir, "endpoint")))
                try:
                    while True:
                        with suppress(TernError):
                            now = (await client.ping()).stats
                            stats = f"{now.num_running} run, {now.num_waiting} wait, "
                            stats += f"{now.num_free_blocks} of {now.num_blocks} blocks are free"
                            if (
                                now.num_running == now.num_waiting == 0
                                and now.num_free_blocks == now.num_blocks
                            ):
                                return
                        await asyncio.sleep(_REST_LOOK_S)
                finally:
                    await client.close()
        except (TimeoutError, TernError):
            self.tally.problem("leak", f"not at rest after {REST_DEADLINE_S:g} s: {stats}")

    def _judge(self, files_before: dict[str, int], files_after: dict[str, int]) -> None:
        tally = self.tally
        self._restarts = self.faults.restarts_seen()
        if self._restarts != self.faults.restarts:
            tally.problem("restarts", f"{_counts(self._restarts)} instead of {_counts(self.faults.restarts)}")
        for growth in self.vitals.growths():
            if not growth.is_flat:
                tally.problem("leak", f"{growth}")
        for kind, count in files_after.items():
            if count > files_before[kind] + MOST_OPEN_FILES:
                tally.problem("leak", f"{kind}: {count} open files at rest, {files_before[kind]} before")
        if "Traceback" in self._stack.log.read_text(errors="replace"):
            tally.problem("traceback", "in the server's log")

    def report(self) -> str:
        """Tables, and the verdict."""
        tally, faults = self.tally, self.faults
        seconds = time.monotonic() - self._began
        lines = [self.line(), "", "| answers, all right | count |", "|---|---|"]
        lines += [f"| {manner} | {count:,} |" for manner, count in sorted(tally.done.items())]
        lines += [f"| of those keyed, broken and gone on with | {tally.resumed:,} |"]
        lines += [f"| broken with their frontend, without a key | {tally.broken:,} |"]
        lines += ["", "| fault | count | over after s, p50 | most |", "|---|---|---|---|"]
        for name, times in sorted(faults.recovery_s.items()):
            lines.append(f"| {name} | {len(times)} | {percentile(times, 50):.2f} | {max(times):.2f} |")
        lines += [
            "",
            "| process | judged | memory grew, MB, most | threads grew, most |",
            "|---|---|---|---|",
        ]
        growths = self.vitals.growths()
        for kind in sorted({growth.kind for growth in growths}):
            of_kind = [growth for growth in growths if growth.kind == kind]
            memory, threads = max(g.memory_mb for g in of_kind), max(g.threads for g in of_kind)
            lines.append(f"| {kind} | {len(of_kind)} | {memory:+.1f} | {threads:+.1f} |")
        lines += ["", f"restarts: {_counts(self._restarts)}; expected: {_counts(faults.restarts)}"]
        lines += [f"wrong: {kind}: {count}" for kind, count in tally.wrong.items()]
        lines += [f"  {text}" for text in tally.told]
        verdict = "FAILED" if tally.wrong else "passed"
        lines.append(f"{verdict} after {seconds / 60:.1f} min, seed {self._plan.seed}")
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(counter.items())) or "none"


async def run(plan: Plan, serve_arguments: Sequence[str]) -> bool:
    """Serve, soak, print; whether all was well."""
    with serving([*SERVE_DEFAULTS, *serve_arguments]) as stack:
        soak = Soak(plan, stack)
        await soak.run()
        pids = [pid for of_kind in stack.pids.values() for pid in of_kind]
    if left := _left_behind(stack, pids):
        soak.tally.problem("left behind", left)
    print(soak.report(), flush=True)
    return not soak.tally.wrong


def _left_behind(stack: Stack, pids: Sequence[int]) -> str:
    left = [pid for pid in pids if Path("/proc", str(pid)).exists()]
    return f"processes {left}" if left else stack.run_dir if Path(stack.run_dir).exists() else ""
