"""Tasks with few questions: months, capitals, opposites, the standard library, small talk."""

from collections.abc import Callable
from random import Random

from .wording import FACTS, Turns, asked, from_user


def cycle(names: list[str], kind: str) -> Callable[[Random], Turns]:
    def make(rng: Random) -> Turns:
        i, step = rng.randrange(len(names)), rng.choice((1, -1))
        ask = "Which {k} comes {s} {n}?|What {k} is {s} {n}?|Name the {k} {s} {n}.|The {k} {s} {n} is"
        side = "after" if step == 1 else "before"
        return asked(rng, ask, names[(i + step) % len(names)], k=kind, s=side, n=names[i])

    return make


def capital(rng: Random) -> Turns:
    country, city = rng.choice(FACTS["capitals"])
    ask = (
        "What is the capital of {c}?|Name the capital of {c}.|Capital of {c}?|"
        "Which city is the capital of {c}?"
    )
    return asked(rng, ask, f"The capital of {country} is {city}.", c=country)


def opposite(rng: Random) -> Turns:
    a, b = rng.sample(rng.choice(FACTS["opposites"]), 2)
    ask = (
        "What is the opposite of {a}?|Opposite of {a}?|Give me the opposite of {a}.|Name the opposite of {a}."
    )
    return asked(rng, ask, f"The opposite of {a} is {b}.", a=a)


def stdlib(rng: Random) -> Turns:
    name, answer = rng.choice(FACTS["python"])
    ask = "What does {n} do?|What is {n} in Python?|Describe {n}.|Explain {n} in one sentence.|Python: {n}"
    return asked(rng, ask, answer, n=name)


def small_talk(rng: Random) -> Turns:
    asked, answer = rng.choice(FACTS["small_talk"])
    return from_user(rng.choice(asked)), answer
