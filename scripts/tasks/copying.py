"""Tasks whose answer stands in the prompt."""

import json
from random import Random

from .wording import (
    ORDINALS,
    VOCABULARY,
    WORDS,
    Turns,
    asked,
    from_assistant,
    from_user,
    phrased,
    some_city,
    some_name,
)


def nth_word(rng: Random) -> Turns:
    words = rng.sample(WORDS, rng.randint(3, 5))
    i = rng.randrange(len(words))
    ask = (
        "What is the {o} word in: {t}|Words: {t}. Which is the {o} word?|Give the {o} word of this list: {t}"
    )
    return asked(rng, ask, f"The {ORDINALS[i]} word is {words[i]}.", o=ORDINALS[i], t=" ".join(words))


def copy(rng: Random) -> Turns:
    a, b, c = rng.sample(WORDS, 3)
    shapes = (
        "The {a} is behind the {b}.|{n} found a {a} under the {b}.|{n} has one {a} and two {b} maps.|"
        "My {a} fell into the {b} near the {c}.|The {a} and the {b} are in the {c}."
    )
    shape = rng.choice(shapes.split("|"))
    text = shape.format(a=a, b=b, c=c, n=some_name(rng))
    ask = "Repeat: {t}|Copy this sentence: {t}|Repeat after me: {t}|Say exactly this: {t}"
    return asked(rng, ask, text, t=text)


def extract_person(rng: Random) -> Turns:
    name, city, age = some_name(rng), some_city(rng), rng.randint(18, 99)
    shapes = "{n} is {a} years old and lives in {c}.|{n} from {c} is {a}.|In {c} lives {n}, aged {a}."
    text = phrased(rng, shapes, n=name, a=age, c=city)
    ask = (
        "Extract name, age and city as JSON: {t}|JSON with name, age, city: {t}|"
        "{t} Give name, age and city as JSON."
    )
    return asked(rng, ask, json.dumps({"name": name, "age": age, "city": city}), t=text)


def extract_order(rng: Random) -> Turns:
    name, item, count = some_name(rng), rng.choice(VOCABULARY["items"]), rng.randint(2, 60)
    shapes = "{n} orders {k} {i}.|{n} would like {k} {i}.|Please send {k} {i} to {n}."
    text = phrased(rng, shapes, n=name, k=count, i=item)
    ask = "Extract the order as JSON: {t}|Order to JSON: {t}|{t} Write this order as JSON."
    return asked(rng, ask, json.dumps({"customer": name, "item": item, "count": count}), t=text)


def lookup(rng: Random) -> Turns:
    found: dict[str, None] = {}
    count = rng.randint(2, 3)
    while len(found) < count:
        found[some_name(rng)] = None
    liked = rng.sample(WORDS, count)
    facts = [f"{name} likes {word}." for name, word in zip(found, liked, strict=True)]
    which = rng.randrange(count)
    ask = "{t} What does {n} like?|Notes: {t} What does {n} like?|{t} Tell me what {n} likes."
    return asked(rng, ask, facts[which], t=" ".join(facts), n=list(found)[which])


def remember(rng: Random) -> Turns:
    name, place = some_name(rng), some_city(rng)
    messages = from_user(phrased(rng, "My name is {n}.|Hi, my name is {n}.|I am called {n}.", n=name))
    messages += from_assistant(f"Nice to meet you, {name}.")
    if rng.random() < 0.5:
        messages += from_user(f"I live in {place}.") + from_assistant(f"I will remember that, {name}.")
        if rng.random() < 0.5:
            ask = phrased(rng, "Where do I live?|Which place do I live in?")
            return messages + from_user(ask), f"You live in {place}."
    ask = phrased(rng, "What is my name?|Do you remember my name?|Who am I?")
    return messages + from_user(ask), f"Your name is {name}."
