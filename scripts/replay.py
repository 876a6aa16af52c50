"""`tern replay FILE`: executes a journal's plans again and compares token for token. Knows no sockets.

    Reset ──▶ runner.reset()      StepPlan ──▶ runner.execute()      StepResult ──▶ compare with the answer

A plan edits a resident batch, so a recording is a program: the same plans on the same weights, the same
number of threads and the same build give the same tokens. The journal knows which model it was, with how
many blocks of which size; the worker and the model itself are named with `tern serve`'s options.
"""

import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from engine_core.journal import Opened, Record, Submitted, read
from protocol import columns
from protocol.config import WorkerConfig
from protocol.errors import StartupError
from protocol.messages import NO_TOKEN
from protocol.options import ServeOptions
from protocol.sockets import fingerprint
from protocol.steps import Reset, StepFailed, StepMasks, StepPlan, StepResult
from worker.worker import Runner

from .command_options import ReplayCommand
from .flags import Command, parse_serve
from .model_path import resolve

REPLAY = Command(
    "replay",
    """\
Execute a journal (tern serve --journal FILE) again and compare with what was recorded, token for token.
The epochs before the last death of a worker are in FILE.old.

Name --model and --worker as they were; the KV cache's shape is taken from the journal.
Exit code: 0 all agree, 1 a difference, 78 a journal or an option that cannot be used.""",
    ReplayCommand,
    positional="file",
    hands_on=True,
)


@dataclass
class Resident:
    """A resident sequence, as far as a report needs it."""

    num_prompt_tokens: int
    num_tokens: int
    """Prompt and outputs, those included that are planned and not yet known."""
    num_computed_tokens: int
    token_ids: "array[int]"
    """Those that are known."""


@dataclass(frozen=True)
class Row:
    """What a row of a plan was about."""

    sequence: Resident
    num_outputs: int
    """Of the sequence, before the step."""


@dataclass(frozen=True)
class Difference:
    """Where the replay left the recording."""

    epoch: int
    step: int
    what: str
    row: int | None = None
    sequence: Resident | None = None

    def report(self, *, show_tokens: bool) -> str:
        where = f"epoch {self.epoch}, step {self.step}"
        text = f"first difference: {where}" + (f", row {self.row}" if self.row is not None else "")
        text += f": {self.what}"
        if show_tokens and self.sequence is not None:
            ids, border = list(self.sequence.token_ids), self.sequence.num_prompt_tokens
            text += f"\n  prompt  {ids[:border]}\n  outputs {ids[border:]}"
        return text


@dataclass
class Replay:
    """Feeds records to a runner; `difference` stays None as long as it answers as recorded."""

    runner: Runner
    epochs: int = 0
    steps: int = 0
    tokens: int = 0
    unrepeated_failures: int = 0
    """Steps that failed when recorded, and not now: the cause was outside the plans."""
    difference: Difference | None = None
    _sequences: dict[int, Resident] = field(default_factory=dict)
    _answers: dict[int, StepResult | str] = field(default_factory=dict)
    """By step: the result, or why there is none."""
    _rows: dict[int, list[Row]] = field(default_factory=dict)
    _maskless: StepPlan | None = None
    """A plan whose masks follow."""
    _failed: bool = False

    def feed(self, record: Record) -> None:
        match record:
            case Opened() | Submitted():
                pass
            case Reset():
                self.runner.reset()
                self._sequences.clear()
                self._answers.clear()
                self._failed = False
                self.epochs += 1
            case StepPlan() if record.masked_rows and not record.masks:
                self._maskless = record
            case StepPlan():
                self._execute(record)
            case StepMasks():
                assert self._maskless is not None
                self._execute(msgspec.structs.replace(self._maskless, masks=record.masks))
            case StepResult():
                self._compare(record)
            case StepFailed():
                self.unrepeated_failures += not isinstance(self._answers.pop(record.step, ""), str)

    def _execute(self, plan: StepPlan) -> None:
        if self._failed:
            return  # a worker, too, executes nothing more before the reset
        self._rows[plan.step] = self._follow(plan)
        try:
            self._answers[plan.step] = self.runner.execute(plan)
        except Exception as error:
            self._failed = True
            self._answers[plan.step] = f"{type(error).__name__}: {error}"

    def _follow(self, plan: StepPlan) -> list[Row]:
        for slot in columns.unpack_ids(plan.released):
            self._sequences.pop(slot, None)
        for start in plan.started:
            ids = columns.unpack_ids(start.token_ids)
            self._sequences[start.slot] = Resident(
                start.num_prompt_tokens, len(ids), start.num_computed_tokens, ids
            )
        rows = []
        slots, counts = columns.unpack_ids(plan.scheduled_slots), columns.unpack_ids(plan.scheduled_counts)
        for slot, count in zip(slots, counts, strict=True):
            sequence = self._sequences[slot]
            rows.append(Row(sequence, sequence.num_tokens - sequence.num_prompt_tokens))
            sequence.num_computed_tokens += count
            sequence.num_tokens += sequence.num_computed_tokens == sequence.num_tokens
        return rows

    def _compare(self, recorded: StepResult) -> None:
        answer, rows = self._answers.pop(recorded.step, None), self._rows.pop(recorded.step, [])
        if not isinstance(answer, StepResult):
            why = f"it failed now: {answer}" if answer else "its plan is not in the journal"
            self.difference = Difference(recorded.epoch, recorded.step, why)
            return
        was, now = columns.unpack_ids(recorded.token_ids), columns.unpack_ids(answer.token_ids)
        for number, row in enumerate(rows):
            if was[number] != now[number]:
                sequence = row.sequence
                what = f"{sequence.num_prompt_tokens} prompt tokens, {row.num_outputs} outputs: "
                what += f"recorded {_name(was[number])}, replayed {_name(now[number])}"
                self.difference = Difference(recorded.epoch, recorded.step, what, number, sequence)
                return
            if was[number] != NO_TOKEN:
                row.sequence.token_ids.append(was[number])
                self.tokens += 1
        self.steps += 1


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0 all agree, 1 a difference. Raises StartupError."""
    command, rest = REPLAY.parse_own(argv, environ)
    path, show_tokens = command.replay.file, command.replay.show_tokens
    if not path:
        raise StartupError("the journal's file is missing", hint="tern replay FILE [options of tern serve]")
    options = parse_serve(rest, environ)
    records = _records(path)
    opened = next(records, None)
    if not isinstance(opened, Opened):
        raise StartupError(f"{path}: no journal, or one that ends before its first step")
    if opened.fingerprint != fingerprint():
        raise StartupError(
            f"{path}: recorded with wire schema {opened.fingerprint}, and this is {fingerprint()}",
            hint="replay it with the version that recorded it",
        )
    with tempfile.TemporaryDirectory(prefix="tern-replay-") as folder:
        runner = _runner(_config(options, opened, folder, environ), options)
        if runner.model_fingerprint != opened.model_fingerprint:
            raise StartupError(
                f"{path}: recorded with model {opened.facts.model} ({opened.model_fingerprint}),"
                f" and this is {runner.facts.model} ({runner.model_fingerprint})",
                hint="name the model, --dtype, --lora and --worker of the recording",
            )
        replay = Replay(runner)
        for record in records:
            replay.feed(record)
            if replay.difference is not None:
                break
    print(f"agreed: {replay.epochs} epochs, {replay.steps:,} steps, {replay.tokens:,} tokens")
    if replay.unrepeated_failures:
        print(f"{replay.unrepeated_failures} steps failed when recorded, and not now")
    if replay.difference is not None:
        print(replay.difference.report(show_tokens=show_tokens))
    return int(replay.difference is not None)


def _records(path: str) -> Iterator[Record]:
    try:
        yield from read(path)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise StartupError(str(error)) from None


def _config(options: ServeOptions, opened: Opened, folder: str, environ: Mapping[str, str]) -> WorkerConfig:
    """One rank with the KV cache and the batch of the recording. Raises StartupError."""
    if options.parallel.tensor_parallel_size > 1:
        raise StartupError(
            "--tensor-parallel-size: a replay runs on one rank", hint="leave it out; sums may then differ"
        )
    facts, default = opened.facts, ServeOptions()
    recorded = {
        "model": {"max_model_len": facts.max_model_len},
        "cache": {"num_kv_blocks": facts.num_blocks, "block_size": facts.block_size},
        "scheduler": {"max_num_seqs": facts.max_num_seqs},
    }
    sections = {}
    for section, values in recorded.items():
        given = getattr(options, section)
        for name, value in values.items():
            asked = getattr(given, name)
            if asked not in (getattr(getattr(default, section), name), value):
                raise StartupError(
                    f"--{name.replace('_', '-')} {asked}: recorded with {value}", hint="leave it out"
                )
        sections[section] = msgspec.structs.replace(given, **values)
    # The plans have chosen their chunks: the recorded blocks need not suffice for larger ones.
    sections["scheduler"] = msgspec.structs.replace(sections["scheduler"], max_num_batched_tokens=1)
    return WorkerConfig(
        incarnation=0,
        rank=0,
        group_dir=folder,
        model=resolve(sections["model"], environ),
        cache=sections["cache"],
        scheduler=sections["scheduler"],
        parallel=options.parallel,
    )


def _runner(config: WorkerConfig, options: ServeOptions) -> Runner:
    # Imported late, as a worker does: the stub must run without torch, and torch takes seconds.
    if options.parallel.worker == "stub":
        from worker.stub import StubRunner

        return StubRunner(config)
    from worker.runner import TorchRunner

    return TorchRunner(config, lambda name, detail, fraction: None)


def _name(token_id: int) -> str:
    return "no token" if token_id == NO_TOKEN else f"token {token_id}"
