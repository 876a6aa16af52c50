"""Tasks of single words: spelling, reversing, counting letters."""

from collections.abc import Callable
from random import Random

from .wording import Turns, asked, some_letters

SPELL = "Spell the word {w}.|Spell {w}.|How do you spell {w}?|Spell out {w} letter by letter."
REVERSE = "Reverse {w}.|Write {w} backwards.|Reverse the word {w}.|What is {w} backwards?"
UPPER = "Uppercase {w}.|Write {w} in upper case.|Convert {w} to upper case."
LENGTH = "How many letters are in {w}?|How long is the word {w}?|Length of {w}?|Count the letters in {w}."
FIRST = "What is the first letter of {w}?|First letter of {w}?|{w} starts with which letter?"
LAST = "What is the last letter of {w}?|Last letter of {w}?|{w} ends with which letter?"


def quoted(phrasings: str, answer: Callable[[str], object]) -> Callable[[Random], Turns]:
    def make(rng: Random) -> Turns:
        word = some_letters(rng)
        return asked(rng, phrasings, answer(word), w=f'"{word}"')

    return make


def lower(rng: Random) -> Turns:
    word, ask = some_letters(rng), 'Lowercase "{w}".|Write "{w}" in lower case.|Convert "{w}" to lower case.'
    return asked(rng, ask, word, w=word.upper())
