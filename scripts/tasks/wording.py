"""The words of the bundled model's tasks, and how a question is phrased.

The one file that is read lies beside the model.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

Message = dict[str, str]
Turns = tuple[list[Message], str]  # everything up to the question, and the one right answer

FACTS_FILE = Path(__file__).resolve().parents[2] / "models" / "tern-mini" / "facts.json"
FACTS: dict[str, Any] = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
VOCABULARY: dict[str, list[str]] = {kind: words.split() for kind, words in FACTS["vocabulary"].items()}
WORDS, FIRST_NAMES, CITIES = VOCABULARY["words"], VOCABULARY["first_names"], VOCABULARY["cities"]
MONTHS, DAYS, ORDINALS = VOCABULARY["months"], VOCABULARY["days"], VOCABULARY["ordinals"]
ONES, TENS = VOCABULARY["ones"], VOCABULARY["tens"]
UNITS: list[tuple[str, str, int]] = FACTS["units"]
SYSTEM_PROMPTS: list[str] = FACTS["system_prompts"]


def from_user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def from_assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def phrased(rng: Random, phrasings: str, **fields: object) -> str:
    return rng.choice(phrasings.split("|")).format(**fields)


def asked(rng: Random, phrasings: str, answer: object, **fields: object) -> Turns:
    return from_user(phrased(rng, phrasings, **fields)), str(answer)


def pseudo_word(rng: Random, syllables: int) -> str:
    stem = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))
    return stem + rng.choice(("", "", "n", "r", "s", "t", "l", "m", "k"))


def some_letters(rng: Random) -> str:
    """A word for the letter tasks: an everyday one, a pronounceable one, or plain random letters."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(rng.choice((WORDS, VOCABULARY["common"])))
    if kind < 0.75:
        return pseudo_word(rng, rng.randint(1, 3))
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))


def invented_word(rng: Random) -> str:
    return pseudo_word(rng, rng.randint(2, 3)).capitalize()


def some_name(rng: Random) -> str:
    return rng.choice(FIRST_NAMES) if rng.random() < 0.3 else invented_word(rng)


def some_city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.4 else invented_word(rng)
