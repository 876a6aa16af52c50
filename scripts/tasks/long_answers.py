"""Tasks with long answers, for streams: counting, tables, lists, recitations, a story."""

from random import Random

from .wording import DAYS, MONTHS, ONES, WORDS, Turns, asked, some_city, some_name

RECITATIONS = {
    "the alphabet": " ".join("abcdefghijklmnopqrstuvwxyz"),
    "the months of the year": ", ".join(MONTHS) + ".",
    "the days of the week": ", ".join(DAYS) + ".",
    "the numbers from one to twenty": ", ".join([*ONES[1:], "twenty"]) + ".",
}
STORY = (
    "Once upon a time there was a tern called {n}. Every autumn {n} left {c} and flew south over the sea. "
    "One night a storm came, and {n} lost the way. Then {n} saw a {t} on a small island and rested beside it "
    "until morning. The wind turned, the sky was clear, and {n} flew on. In spring {n} came home to {c} and "
    "told everyone about the {t}. The end."
)


def count(rng: Random) -> Turns:
    a, length = rng.randint(1, 40), rng.randint(4, 22)
    numbers = ", ".join(map(str, range(a, a + length))) + "."
    ask = "Count from {a} to {b}.|List the numbers from {a} to {b}.|Count up from {a} to {b}."
    return asked(rng, ask, numbers, a=a, b=a + length - 1)


def count_down(rng: Random) -> Turns:
    a = rng.randint(4, 25)
    b = rng.randint(max(0, a - 20), a - 3)
    numbers = ", ".join(map(str, range(a, b - 1, -1))) + "."
    ask = "Count down from {a} to {b}.|Count backwards from {a} to {b}."
    return asked(rng, ask, numbers, a=a, b=b)


def times_table(rng: Random) -> Turns:
    n = rng.randint(1, 12)
    rows = "\n".join(f"{n} x {k} = {n * k}" for k in range(1, 11))
    ask = (
        "Show the {n} times table.|Write the multiplication table of {n}.|Multiplication table of {n}|"
        "{n} times table|Show me the table of {n}."
    )
    return asked(rng, ask, rows, n=n)


def numbered_list(rng: Random) -> Turns:
    word, n = rng.choice(WORDS).capitalize(), rng.randint(3, 25)
    rows = ", ".join(f"{word} {k}" for k in range(1, n + 1)) + "."
    ask = "List {w} 1 to {w} {n}.|Write down {w} 1 to {w} {n}.|Number them: {w} 1 to {w} {n}."
    return asked(rng, ask, rows, w=word, n=n)


def recite(rng: Random) -> Turns:
    what, text = rng.choice(list(RECITATIONS.items()))
    return asked(rng, "Recite {w}.|List {w}.|Say {w}.|Write down {w}.|Tell me {w}.", text, w=what)


def story(rng: Random) -> Turns:
    fields = {"n": some_name(rng), "c": some_city(rng), "t": rng.choice(WORDS)}
    ask = "Tell me a story about {n}, {c} and a {t}.|Write a story with {n}, {c} and a {t}."
    return asked(rng, ask, STORY.format(**fields), **fields)
