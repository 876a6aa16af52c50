"""`python -m tests.conformance` installs the light clients. With `--check` it installs all of them and asks a
server of the bundled model with each; what they did goes into docs/clients.md. Names of clients after it ask
those alone, and leave the page as it is."""

import argparse
import datetime
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scripts.model_path import BUNDLED
from tests.conformance.clients import CLIENTS, PAGE, Client, Said, install
from tests.conftest import Program

MODEL = "tern-mini"


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server of the bundled model."""
    with tempfile.TemporaryDirectory(prefix="tern-") as folder:
        flags = ["--port", "0", "--run-dir", f"{folder}/run", "--served-model-name", MODEL]
        program = Program(
            [sys.executable, "-m", "scripts.cli", "serve", str(BUNDLED), *flags], {"PATH": "/usr/bin:/bin"}
        )
        try:
            yield program.wait_for(r"API +(http://\S+)/v1")[1]
            program.signal(signal.SIGTERM)
            program.wait()
        finally:
            program.close()


def ask(clients: Sequence[Client]) -> Iterator[tuple[Client, Said]]:
    """Each of a server. Raises AssertionError where a call fails."""
    with serving() as url:
        for client in clients:
            if client.missing():
                sys.exit(f"clients: {client.name}: {client.missing()}")
            begun = time.monotonic()
            said = client.ask(url, MODEL)
            print(
                f"{client.name}: {len(said.calls)} calls, {time.monotonic() - begun:.0f} s", file=sys.stderr
            )
            for result in said.results:
                print(f"    {result}", file=sys.stderr)
            yield client, said


def write(answers: Sequence[tuple[Client, Said]]) -> None:
    """The tables of the page, and when and where they were made."""
    about = f"Python {platform.python_version()}, {datetime.date.today().isoformat()}."
    rows = []
    for client, said in answers:
        cells = client.name, client.versions(), "; ".join(said.calls), "yes" if client.light else "no"
        rows.append(f"| {' | '.join(cells)} |")
    results = [f"| {result} |" for _, said in answers for result in said.results]
    page = PAGE.read_text()
    page = _filled(
        page, "clients", [about, "", "| client | versions | calls | in CI |", "|---|---|---|---|", *rows]
    )
    head = "| task | lm-eval's model | Tern, one at a time | Tern, 32 at once | `hf` (transformers) |"
    PAGE.write_text(_filled(page, "lm-eval", [about, "", head, "|---|---|---|---|---|", *results]))


def _filled(page: str, name: str, lines: Sequence[str]) -> str:
    """With these lines between the marks of that name."""
    begin = f"<!-- made: {name} -->\n"
    made = "".join(f"{line}\n" for line in lines)
    return re.sub(f"(?s)(?<={begin}).*?(?=<!-- end -->)", lambda _: made, page, count=1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/clients", description=__doc__)
    parser.add_argument("--check", action="store_true", help="ask, too, and write docs/clients.md")
    parser.add_argument("names", nargs="*", metavar="client", help="with --check: only these")
    arguments = parser.parse_args()
    names = {client.name for client in CLIENTS}
    if unknown := set(arguments.names) - names:
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    asked = [client for client in CLIENTS if client.name in (arguments.names or names)]
    clients = asked if arguments.check else [client for client in CLIENTS if client.light]
    failed = install(clients)
    if arguments.check and not failed:
        answers = list(ask(clients))
        if not arguments.names:
            write(answers)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
