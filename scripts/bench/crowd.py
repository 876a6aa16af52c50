"""A crowd that keeps a server full, in a process of its own.

    python -m scripts.bench.crowd HOST PORT PLACES TOKENS

Whoever is done comes again at once. A line is written for each answer that was served to its end. So the
process that times others' requests has nothing else to do.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .load import completion_request, one
from .stack import Stack


class Crowd:
    """The process, and what it writes: a line per answer."""

    def __init__(self, arguments: list[str], output: IO[bytes]) -> None:
        self._output = output
        self.process = subprocess.Popen([sys.executable, "-m", __name__, *arguments], stdout=output)

    def check(self) -> None:
        """Raises RuntimeError if it is not there any more."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the crowd ended with {self.process.returncode}; what it said is above")

    def served(self) -> int:
        """Answers so far."""
        self._output.seek(0)
        return len(self._output.readlines())


@contextmanager
def crowd(stack: Stack, places: int, tokens: int) -> Iterator[Crowd]:
    """It is there until the end of `with`."""
    with tempfile.TemporaryFile() as output:
        made = Crowd([stack.host, str(stack.port), str(places), str(tokens)], output)
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()


async def _stay(host: str, port: int, number: int, tokens: int) -> None:
    """One place, taken again as soon as it is free. Refused, it was taken by another: try again."""
    request = completion_request([5, number, 7], tokens)
    while True:
        stream = await one(host, port, request)
        if not stream.error:
            print("served", flush=True)
        elif "rate_limit_error" not in stream.error:
            raise RuntimeError(stream.error)


async def _main(host: str, port: int, places: int, tokens: int) -> None:
    await asyncio.gather(*(_stay(host, port, number, tokens) for number in range(places)))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
