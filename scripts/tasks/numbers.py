"""Tasks of numbers: comparing, sorting, sums, units."""

from random import Random

from .wording import ONES, TENS, UNITS, Turns, asked


def parity(rng: Random) -> Turns:
    n, ask = rng.randint(0, 999), "Is {n} even or odd?|Even or odd: {n}|Tell me whether {n} is even or odd."
    return asked(rng, ask, ("even", "odd")[n % 2], n=n)


def compare(rng: Random) -> Turns:
    a, b = rng.sample(range(1, 100), 2)
    if rng.random() < 0.5:
        ask, answer = "Which is larger, {a} or {b}?|Which number is bigger: {a} or {b}?", max(a, b)
    else:
        ask, answer = "Which is smaller, {a} or {b}?|Which number is less: {a} or {b}?", min(a, b)
    return asked(rng, ask, answer, a=a, b=b)


def _few_numbers(rng: Random) -> tuple[list[int], str]:
    numbers = rng.sample(range(1, 100), rng.choice((3, 3, 4)))
    return numbers, ", ".join(map(str, numbers))


def max_min(rng: Random) -> Turns:
    numbers, text = _few_numbers(rng)
    if rng.random() < 0.5:
        return asked(rng, "What is the largest of {t}?|Find the maximum: {t}", max(numbers), t=text)
    return asked(rng, "What is the smallest of {t}?|Find the minimum: {t}", min(numbers), t=text)


def sort(rng: Random) -> Turns:
    numbers, text = _few_numbers(rng)
    ask = "Sort these numbers: {t}|Sort {t} in ascending order.|Put in order: {t}"
    return asked(rng, ask, ", ".join(map(str, sorted(numbers))), t=text)


def add(rng: Random) -> Turns:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return asked(
        rng, "What is {a} + {b}?|{a} + {b} =|What is {a} plus {b}?|Add {a} and {b}.", a + b, a=a, b=b
    )


def subtract(rng: Random) -> Turns:
    a = rng.randint(0, 20)
    b = rng.randint(0, a)
    ask = "What is {a} - {b}?|{a} - {b} =|What is {a} minus {b}?|Subtract {b} from {a}."
    return asked(rng, ask, a - b, a=a, b=b)


def multiply(rng: Random) -> Turns:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    ask = "What is {a} x {b}?|{a} * {b} =|What is {a} times {b}?|Multiply {a} by {b}."
    return asked(rng, ask, a * b, a=a, b=b)


def units(rng: Random) -> Turns:
    small, large, factor = rng.choice(UNITS)
    n = rng.randint(2, 12)
    ask = (
        "How many {s} are {n} {l}?|Convert {n} {l} to {s}.|{n} {l} in {s}?|How many {s} are there in {n} {l}?"
    )
    return asked(rng, ask, f"{n} {large} are {n * factor} {small}.", n=n, s=small, l=large)


def number_words(rng: Random) -> Turns:
    n = rng.randint(0, 99)
    words = ONES[n] if n < 20 else TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    ask = "Write {n} in words.|How do you say {n} in words?|Spell out the number {n}."
    return asked(rng, ask, f"In words: {words}.", n=n)
