"""What people see: log lines, errors, and one line of progress that is rewritten where it can be.

Log and progress go to standard error, what was asked for (banner, help) to standard output. Colours
only on a terminal, and never with NO_COLOR. A reader that has gone away is no reason to stop serving.
With --log-format json each line of the log is an object, and nothing else is written.
"""

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TextIO

import msgspec

Level = Literal["error", "warning", "info", "debug"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info", "debug")

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
CLEAR_LINE = "\r\x1b[K"
BAR_WIDTH = 20
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Directional controls: they can make a line read as what it is not."""


class Terminal:
    """Standard output and error, as far as a person reads them."""

    def __init__(
        self,
        environ: Mapping[str, str],
        level: Level = "info",
        out: TextIO | None = None,
        err: TextIO | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._level = LEVELS.index(level)
        self._colour = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._as_json = as_json
        self.rewrites = not as_json and self._err.isatty() and environ.get("TERM") != "dumb"
        """Whether a line can be written over."""
        self._unfinished = False

    def show(self, text: str, **fields: object) -> None:
        """What was asked for; as JSON, the fields instead of the text."""
        if self._as_json:
            self._write_object("info", **fields)
            return
        self._finish_line()
        self._write(self._out, text + "\n")

    def log(self, level: Level, text: str, **fields: object) -> None:
        """One line with the time, if the level is high enough; as JSON, with the fields."""
        if LEVELS.index(level) > self._level:
            return
        if self._as_json:
            self._write_object(level, message=text, **fields)
            return
        self._finish_line()
        clock = self.paint(self._err, time.strftime("%H:%M:%S"), DIM)
        if level in ("error", "warning"):
            text = self.paint(self._err, text, RED if level == "error" else YELLOW)
        self._write(self._err, f"{clock} tern: {text}\n")

    def fail(self, message: str, hint: str = "") -> None:
        """The root cause, as one last line."""
        if self._as_json:
            self._write_object("error", message=message, hint=hint)
            return
        self._finish_line()
        line = " ".join(f"{message} ({hint})".split()) if hint else " ".join(message.split())
        self._write(self._err, f"{self.paint(self._err, 'tern: error:', RED)} {line}\n")

    def progress(self, text: str, fraction: float | None) -> None:
        """Write over the last progress line. Only where `rewrites`."""
        bar = ""
        if fraction is not None:
            filled = round(min(max(fraction, 0.0), 1.0) * BAR_WIDTH)
            bar = f" [{'=' * filled}{' ' * (BAR_WIDTH - filled)}] {fraction:4.0%}"
        room = shutil.get_terminal_size().columns - 1 - len(bar)
        self._write(self._err, CLEAR_LINE + text[: max(room, 0)] + bar)
        self._unfinished = True

    def say(self, text: str, colour: str = "") -> None:
        """A piece of what a model has written. On a terminal its control characters are shown, not obeyed."""
        if self._out.isatty():
            text = visible(text)
            text = self.paint(self._out, text, colour) if colour and text else text
        self._out.write(text)
        self._out.flush()

    def headline(self, text: str) -> str:
        return self.paint(self._out, text, BOLD)

    def paint(self, stream: TextIO, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and stream.isatty() else text

    def _finish_line(self) -> None:
        if self._unfinished:
            self._write(self._err, CLEAR_LINE)
            self._unfinished = False

    def _write_object(self, level: Level, **fields: object) -> None:
        document = {"time": utc(), "level": level, **fields, "process": "supervisor", "pid": os.getpid()}
        self._write(self._err, msgspec.json.encode(document).decode() + "\n")

    def _write(self, stream: TextIO, text: str) -> None:
        with suppress(OSError, ValueError):
            stream.write(text)
            stream.flush()


def visible(text: str) -> str:
    """The same with escapes for what would move the cursor, change the terminal or turn the text around."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in "\n\t"
        and (
            unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(letter) in TURNS
        )
        else letter
        for letter in text
    )


def utc() -> str:
    """Now, as in a JSON log: 2026-11-25T12:00:00.123Z"""
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
