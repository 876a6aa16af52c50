"""`tern generate`: answer a file of prompts, through a server of its own or one that runs.

The output grows by one line for each line of the input, in order. Killed at any instant and run again, the
command goes on behind the last whole line: no answer is lost that was written, and none is there twice.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from protocol.errors import StartupError
from protocol.options import ServeOptions

from .api_client import ApiClient, Reply, connect
from .asking import Asker, Question, patience
from .batch import Line, Output, answer_line, count_lines, read_lines
from .command_options import GenerateCommand, GenerateOptions
from .flags import Command
from .local_server import LocalServer
from .model_path import resolve
from .options import declared_options
from .terminal import Terminal

GENERATE = Command(
    "generate",
    "Answer a file of prompts. Takes every option of tern serve, for the server that it starts.",
    GenerateCommand,
    positional="model",
)
PATIENCE_S = 120.0
LOG_EVERY_S = 10.0


class _Usage(Struct, frozen=True):
    completion_tokens: int = 0


class _Choice(Struct, frozen=True):
    finish_reason: str | None = None


class _Counted(Struct, frozen=True):
    usage: _Usage = _Usage()
    choices: tuple[_Choice, ...] = ()


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: every line is answered; 1: some are with an error. Raises StartupError."""
    command, given = GENERATE.parse(argv, environ)
    options = command.generate
    if not options.input or not options.output:
        missing = "--input" if not options.input else "--output"
        raise StartupError(f"{missing} is missing", hint="tern generate --input FILE --output FILE")
    terminal = Terminal(environ, command.server.log_level)
    total = count_lines(options.input)
    output = Output(options.output, overwrite=options.overwrite)
    server: LocalServer | None = None
    try:
        url, model, check, key = options.url, command.model.model, patience(options.url, PATIENCE_S), ""
        if url:
            _refuse_flags_of_a_server(given)
            key = (*command.frontend.api_key, "")[0]
            _, model = connect(url, command.frontend.api_key, model)
        lines = read_lines(options.input, _defaults(options, model if url else ""))
        done, errors = output.resume(lines)
        progress = Progress(terminal, total, done, errors)
        if done < total and not url:
            serve = structs.replace(
                ServeOptions(**{name: getattr(command, name) for name in ServeOptions.__struct_fields__}),
                model=resolve(command.model, environ),
            )
            server = LocalServer(serve)
            server.wait_until_ready(progress.starting)
            url, check = server.url, lambda _: server.check()
        concurrency = options.concurrency or command.scheduler.max_num_seqs
        timeout_s = None if server is not None else 3600.0
        with Asker(lambda: ApiClient(url, key, timeout_s), concurrency, check) as asker:
            progress.begin()
            for line, reply in _answers(asker, lines, progress):
                output.append(answer_line(line, reply))
                progress.on_answer(reply)
        progress.end()
        return int(progress.errors > 0)
    finally:
        output.close()
        if server is not None:
            server.close()


class Progress:
    """How far it is: one line that is rewritten, or a log line every ten seconds."""

    def __init__(self, terminal: Terminal, total: int, done: int, errors: int) -> None:
        self.errors = errors
        self._terminal, self._total, self._done, self._before = terminal, total, done, done
        self._tokens, self._cut = 0, 0
        self._began = time.monotonic()
        self._next = self._began + (0.0 if terminal.rewrites else LOG_EVERY_S)
        if done:
            terminal.log("info", f"{done:,} of {total:,} lines are answered already")

    def starting(self) -> None:
        """The server is not ready yet."""
        if self._terminal.rewrites:
            self._terminal.progress(f"starting the server, {time.monotonic() - self._began:.1f} s", None)

    def begin(self) -> None:
        """The first question is asked now."""
        self._began = time.monotonic()

    def on_answer(self, reply: Reply | None) -> None:
        """A line more is written."""
        self._done += 1
        self.errors += reply is None or reply.status != 200
        counted = _counted(reply) if reply is not None else _Counted()
        self._tokens += counted.usage.completion_tokens
        self._cut += any(choice.finish_reason == "length" for choice in counted.choices)
        self.repaint()

    def repaint(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        if self._terminal.rewrites:
            self._next = now + 0.1
            self._terminal.progress(self._text(now), self._done / max(self._total, 1))
        else:
            self._next = now + LOG_EVERY_S
            self._terminal.log("info", self._text(now))

    def end(self) -> None:
        if self._done == self._before and self._done:
            return  # nothing was asked, and that is told
        answered = self._done - self.errors
        errors = f", {self.errors:,} with an error" if self.errors else ""
        seconds = time.monotonic() - self._began
        rate = f"{self._tokens:,} tokens in {seconds:.1f} s ({self._tokens / max(seconds, 1e-9):,.0f}/s)"
        cut = f", {self._cut:,} of them cut at their length" if self._cut else ""
        self._terminal.log("info", f"{answered:,} lines answered{cut}{errors}; {rate}")

    def _text(self, now: float) -> str:
        seconds = max(now - self._began, 1e-9)
        rate = (self._done - self._before) / seconds
        left = f", {_clock((self._total - self._done) / rate)} left" if rate else ""
        errors = f", {self.errors:,} errors" if self.errors else ""
        speed = f"{rate:.1f} lines/s, {self._tokens / seconds:,.0f} tok/s"
        return f"{self._done:,} of {self._total:,} lines, {speed}{left}{errors}"


def _answers(asker: Asker, lines: Iterator[Line], progress: Progress) -> Iterator[tuple[Line, Reply | None]]:
    """In the order of the lines; those with a mistake are not asked."""
    for_asking, for_writing = itertools.tee(lines)
    questions: Iterator[Question] = (line.question for line in for_asking if line.question is not None)
    replies = asker.ask(questions, progress.repaint)
    for line in for_writing:
        yield line, next(replies) if line.question is not None else None


def _defaults(options: GenerateOptions, model: str) -> dict[str, Any]:
    values: dict[str, Any] = {"model": model} if model else {}
    for name in ("max_tokens", "temperature", "top_p"):
        if (value := getattr(options, name)) is not None:
            values[name] = value
    return values


def _refuse_flags_of_a_server(given: frozenset[str]) -> None:
    """They would change nothing. Raises StartupError."""
    allowed = {"model", "api_key", "log_level", *GenerateOptions.__struct_fields__}
    for option in declared_options(GenerateCommand):
        if option.name in given - allowed:
            raise StartupError(
                f"{option.flag} is for a server that is started, but --url names one that runs",
                hint="leave one of them out",
            )


def _counted(reply: Reply) -> _Counted:
    """Of the answer."""
    try:
        return msgspec.json.decode(reply.body, type=_Counted)
    except msgspec.MsgspecError:
        return _Counted()


def _clock(seconds: float) -> str:
    """ "4:05", "1:02:03" """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
