"""Real clients, unmodified, ask a server of the bundled model: each makes all of its calls."""

import re

import pytest

from tests.conformance.clients import CLIENTS, PAGE, PROGRAMS, Client
from tests.stack.conftest import Stack, bundled

__all__ = ["bundled"]


def calls_of(program: str) -> list[str]:
    """As the program's source names them."""
    text = (PROGRAMS / program).read_text()
    if program.endswith(".py"):
        return re.findall(r'^def \w+\(\) -> None:\n    """(.+)"""', text, re.M)
    return re.findall(r'^  "(.+)": async ', text, re.M)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_call_works(client: Client, bundled: Stack) -> None:
    if reason := client.missing():
        pytest.skip(f"{client.name}: {reason}")
    said = client.ask(bundled.base_url, bundled.model)
    assert sorted(said.calls) == sorted(calls_of(client.program))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_page_has_its_calls(client: Client) -> None:
    [row] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {client.name} |")]
    versions, calls = (cell.strip() for cell in row.split("|")[2:4])
    assert sorted(calls.split("; ")) == sorted(calls_of(client.program)), "run scripts/clients --check"
    assert versions == client.versions() or not client.packages, "run scripts/clients --check"
