"""`python -m tests.conformance` installs the light clients. With `--check` it installs all of them and asks a
server of the bundled model with each; what they did goes into docs/clients.md."""

import argparse
import datetime
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.model_path import BUNDLED
from tests.conformance.clients import CLIENTS, PAGE, install
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


def rows() -> Iterator[str]:
    """Of the page's table. Raises AssertionError where a call fails."""
    yield "| client | versions | calls | in CI |"
    yield "|---|---|---|---|"
    with serving() as url:
        for client in CLIENTS:
            if client.missing():
                sys.exit(f"clients: {client.name}: {client.missing()}")
            calls = client.ask(url, MODEL)
            print(f"{client.name}: {len(calls)} calls", file=sys.stderr)
            cells = client.name, client.versions(), "; ".join(calls), "yes" if client.light else "no"
            yield f"| {' | '.join(cells)} |"


def write() -> None:
    """The table, and when and where it was made."""
    about = f"Python {platform.python_version()}, {datetime.date.today().isoformat()}."
    table = "\n".join([about, "", *rows()])
    page = PAGE.read_text()
    PAGE.write_text(
        re.sub(r"(?s)(?<=<!-- made: clients -->\n).*?(?=<!-- end -->)", lambda _: f"{table}\n", page, count=1)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/clients", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="ask with every client, and write docs/clients.md"
    )
    arguments = parser.parse_args()
    failed = list(install(everything=arguments.check))
    if arguments.check and not failed:
        write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
