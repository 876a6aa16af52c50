"""What the programs of this folder share: the server's address, what they ask, and how they report.

Each program runs with nothing but its client's own package: `python -m programs.NAME URL MODEL`. Its calls
are functions whose docstrings say what of the client is used; each prints a line when it is done.
"""

import sys
from collections.abc import Callable
from typing import Any

URL, MODEL = sys.argv[1:]
"""The root of the server, and the name of its model."""

SPELL, SPELLED = 'Spell the word "tern".', "t-e-r-n"
EXTRACT = "Extract name, age and city as JSON: Ada is 36 years old and lives in London."
PERSON: dict[str, Any] = {"name": "Ada", "age": 36, "city": "London"}
WEATHER, WEATHER_TOLD = "Weather in Oslo?", "It is 21 degrees in Oslo."
TOO_LONG = "tern " * 3000
"""Beyond the context of the model, which has 2048 tokens."""
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Temperature in a city, in degrees Celsius",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def equal(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def within(text: str, whole: object) -> None:
    assert text in str(whole), f"no {text!r} in {whole!r}"


def run(*calls: Callable[[], None]) -> None:
    for call in calls:
        call()
        print(f"ok {call.__doc__}", flush=True)
