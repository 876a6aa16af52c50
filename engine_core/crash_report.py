"""A small report of each crash of a worker: which steps were in flight, and which requests were in them.

JSON, in a folder of the operator's choice; the newest sixteen are kept. It holds lengths and sampling
parameters, never a token of a prompt or an answer.
"""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.messages import EngineFacts
from protocol.sampling import SamplingParams

from .planned_step import PlannedStep

_MOST_REPORTS = 16


class StepInFlight(Struct, frozen=True):
    step: int
    num_decodes: int
    num_prompt_chunks: int
    num_tokens: int


class InFlight(Struct, frozen=True):
    """A request of those steps."""

    request_id: int
    client: str
    num_prompt_tokens: int
    num_output_tokens: int
    evidence: int
    """What speaks against it, see suspects.py"""
    sampling: SamplingParams


class CrashReport(Struct, frozen=True):
    time: str
    cause: str
    epoch: int
    facts: EngineFacts
    steps: tuple[StepInFlight, ...]
    requests: tuple[InFlight, ...]


def report_of(cause: str, epoch: int, facts: EngineFacts, steps: Iterable[PlannedStep]) -> CrashReport:
    """What is known when the worker group of these steps is gone."""
    steps = list(steps)
    requests = dict.fromkeys(request for step in steps for request in step.requests)
    return CrashReport(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        cause=cause,
        epoch=epoch,
        facts=facts,
        steps=tuple(
            StepInFlight(step.plan.step, step.num_decodes, len(step.chunks), step.num_tokens)
            for step in steps
        ),
        requests=tuple(
            InFlight(
                request.request_id,
                request.client.name,
                request.num_prompt_tokens,
                request.num_output_tokens,
                request.crashes,
                request.sampling,
            )
            for request in requests
        ),
    )


def write(folder: str, report: CrashReport) -> None:
    """Best effort: a full disk must not make a crash worse."""
    with suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = Path(folder) / f"crash-{report.epoch}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        print(f"engine core: what was in flight when the worker died: {path}", file=sys.stderr, flush=True)
        for old in sorted(Path(folder).glob("crash-*.json"), key=os.path.getmtime)[:-_MOST_REPORTS]:
            old.unlink()
