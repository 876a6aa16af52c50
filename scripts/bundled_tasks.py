"""The tasks that the bundled model is taught: endless training samples and a fixed held-out set.

Every prompt has exactly one right answer, so a benchmark can send `messages` to a server and compare strings.
Knows nothing about torch, tokens or the model; the one file it reads is the facts and words beside the model.

A prompt belongs to the held-out set by a hash of its whole text (one in sixteen), and training skips those.
Closed sets (facts, capitals, months, recitations) share their answers between both sides: there the phrasing
and the system prompt are what is held out. Small talk is taught whole and never scored.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

Message = dict[str, str]
Turns = tuple[list[Message], str]  # everything up to the question, and the one right answer

FACTS_FILE = Path(__file__).resolve().parent.parent / "models" / "tern-mini" / "facts.json"
FACTS: dict[str, Any] = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
VOCABULARY: dict[str, list[str]] = {kind: words.split() for kind, words in FACTS["vocabulary"].items()}
WORDS, FIRST_NAMES, CITIES = VOCABULARY["words"], VOCABULARY["first_names"], VOCABULARY["cities"]
MONTHS, DAYS, ORDINALS = VOCABULARY["months"], VOCABULARY["days"], VOCABULARY["ordinals"]
ONES, TENS = VOCABULARY["ones"], VOCABULARY["tens"]
UNITS: list[tuple[str, str, int]] = FACTS["units"]
SYSTEM_PROMPTS: list[str] = FACTS["system_prompts"]
TOOLS = ("get_weather", "get_time", "set_timer", "call_contact")

HELD_OUT_ONE_IN = 16
SYSTEM_SHARE = 0.4  # of all prompts, held out or not
RECITATIONS = {
    "the alphabet": " ".join("abcdefghijklmnopqrstuvwxyz"),
    "the months of the year": ", ".join(MONTHS) + ".",
    "the days of the week": ", ".join(DAYS) + ".",
    "the numbers from one to twenty": ", ".join([*ONES[1:], "twenty"]) + ".",
}
WEATHER = "What is the weather in {c}?|How is the weather in {c}?"
STORY = (
    "Once upon a time there was a tern called {n}. Every autumn {n} left {c} and flew south over the sea. "
    "One night a storm came, and {n} lost the way. Then {n} saw a {t} on a small island and rested beside it "
    "until morning. The wind turned, the sky was clear, and {n} flew on. In spring {n} came home to {c} and "
    "told everyone about the {t}. The end."
)


@dataclass(frozen=True)
class Sample:
    task: str
    messages: list[Message]
    answer: str


@dataclass(frozen=True)
class Task:
    make: Callable[[Random], Turns]
    weight: float  # share of the training samples, relative to the others
    scored: bool = True


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _phrase(rng: Random, phrasings: str, **fields: object) -> str:
    return rng.choice(phrasings.split("|")).format(**fields)


def _ask(rng: Random, phrasings: str, answer: object, **fields: object) -> Turns:
    return _user(_phrase(rng, phrasings, **fields)), str(answer)


def _pseudo_word(rng: Random, syllables: int) -> str:
    stem = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))
    return stem + rng.choice(("", "", "n", "r", "s", "t", "l", "m", "k"))


def _letters(rng: Random) -> str:
    """A word for the letter tasks: an everyday one, a pronounceable one, or plain random letters."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(rng.choice((WORDS, VOCABULARY["common"])))
    if kind < 0.75:
        return _pseudo_word(rng, rng.randint(1, 3))
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))


def _invented(rng: Random) -> str:
    return _pseudo_word(rng, rng.randint(2, 3)).capitalize()


def _name(rng: Random) -> str:
    return rng.choice(FIRST_NAMES) if rng.random() < 0.3 else _invented(rng)


def _city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.4 else _invented(rng)


# ---- letters and numbers ----


def _quoted(phrasings: str, answer: Callable[[str], object]) -> Callable[[Random], Turns]:
    def make(rng: Random) -> Turns:
        word = _letters(rng)
        return _ask(rng, phrasings, answer(word), w=f'"{word}"')

    return make


def _lower(rng: Random) -> Turns:
    word, ask = _letters(rng), 'Lowercase "{w}".|Write "{w}" in lower case.|Convert "{w}" to lower case.'
    return _ask(rng, ask, word, w=word.upper())


def _parity(rng: Random) -> Turns:
    n, ask = rng.randint(0, 999), "Is {n} even or odd?|Even or odd: {n}|Tell me whether {n} is even or odd."
    return _ask(rng, ask, ("even", "odd")[n % 2], n=n)


def _compare(rng: Random) -> Turns:
    a, b = rng.sample(range(1, 100), 2)
    if rng.random() < 0.5:
        ask, answer = "Which is larger, {a} or {b}?|Which number is bigger: {a} or {b}?", max(a, b)
    else:
        ask, answer = "Which is smaller, {a} or {b}?|Which number is less: {a} or {b}?", min(a, b)
    return _ask(rng, ask, answer, a=a, b=b)


def _few_numbers(rng: Random) -> tuple[list[int], str]:
    numbers = rng.sample(range(1, 100), rng.choice((3, 3, 4)))
    return numbers, ", ".join(map(str, numbers))


def _max_min(rng: Random) -> Turns:
    numbers, text = _few_numbers(rng)
    if rng.random() < 0.5:
        return _ask(rng, "What is the largest of {t}?|Find the maximum: {t}", max(numbers), t=text)
    return _ask(rng, "What is the smallest of {t}?|Find the minimum: {t}", min(numbers), t=text)


def _sort(rng: Random) -> Turns:
    numbers, text = _few_numbers(rng)
    ask = "Sort these numbers: {t}|Sort {t} in ascending order.|Put in order: {t}"
    return _ask(rng, ask, ", ".join(map(str, sorted(numbers))), t=text)


def _add(rng: Random) -> Turns:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return _ask(rng, "What is {a} + {b}?|{a} + {b} =|What is {a} plus {b}?|Add {a} and {b}.", a + b, a=a, b=b)


def _subtract(rng: Random) -> Turns:
    a = rng.randint(0, 20)
    b = rng.randint(0, a)
    ask = "What is {a} - {b}?|{a} - {b} =|What is {a} minus {b}?|Subtract {b} from {a}."
    return _ask(rng, ask, a - b, a=a, b=b)


def _multiply(rng: Random) -> Turns:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    ask = "What is {a} x {b}?|{a} * {b} =|What is {a} times {b}?|Multiply {a} by {b}."
    return _ask(rng, ask, a * b, a=a, b=b)


def _units(rng: Random) -> Turns:
    small, large, factor = rng.choice(UNITS)
    n = rng.randint(2, 12)
    ask = (
        "How many {s} are {n} {l}?|Convert {n} {l} to {s}.|{n} {l} in {s}?|How many {s} are there in {n} {l}?"
    )
    return _ask(rng, ask, f"{n} {large} are {n * factor} {small}.", n=n, s=small, l=large)


def _number_words(rng: Random) -> Turns:
    n = rng.randint(0, 99)
    words = ONES[n] if n < 20 else TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    ask = "Write {n} in words.|How do you say {n} in words?|Spell out the number {n}."
    return _ask(rng, ask, f"In words: {words}.", n=n)


# ---- copying out of the prompt ----


def _nth_word(rng: Random) -> Turns:
    words = rng.sample(WORDS, rng.randint(3, 5))
    i = rng.randrange(len(words))
    ask = (
        "What is the {o} word in: {t}|Words: {t}. Which is the {o} word?|Give the {o} word of this list: {t}"
    )
    return _ask(rng, ask, f"The {ORDINALS[i]} word is {words[i]}.", o=ORDINALS[i], t=" ".join(words))


def _copy(rng: Random) -> Turns:
    a, b, c = rng.sample(WORDS, 3)
    shapes = (
        "The {a} is behind the {b}.|{n} found a {a} under the {b}.|{n} has one {a} and two {b} maps.|"
        "My {a} fell into the {b} near the {c}.|The {a} and the {b} are in the {c}."
    )
    shape = rng.choice(shapes.split("|"))
    text = shape.format(a=a, b=b, c=c, n=_name(rng))
    ask = "Repeat: {t}|Copy this sentence: {t}|Repeat after me: {t}|Say exactly this: {t}"
    return _ask(rng, ask, text, t=text)


def _extract_person(rng: Random) -> Turns:
    name, city, age = _name(rng), _city(rng), rng.randint(18, 99)
    shapes = "{n} is {a} years old and lives in {c}.|{n} from {c} is {a}.|In {c} lives {n}, aged {a}."
    text = _phrase(rng, shapes, n=name, a=age, c=city)
    ask = (
        "Extract name, age and city as JSON: {t}|JSON with name, age, city: {t}|"
        "{t} Give name, age and city as JSON."
    )
    return _ask(rng, ask, json.dumps({"name": name, "age": age, "city": city}), t=text)


def _extract_order(rng: Random) -> Turns:
    name, item, count = _name(rng), rng.choice(VOCABULARY["items"]), rng.randint(2, 60)
    shapes = "{n} orders {k} {i}.|{n} would like {k} {i}.|Please send {k} {i} to {n}."
    text = _phrase(rng, shapes, n=name, k=count, i=item)
    ask = "Extract the order as JSON: {t}|Order to JSON: {t}|{t} Write this order as JSON."
    return _ask(rng, ask, json.dumps({"customer": name, "item": item, "count": count}), t=text)


def _lookup(rng: Random) -> Turns:
    found: dict[str, None] = {}
    count = rng.randint(2, 3)
    while len(found) < count:
        found[_name(rng)] = None
    liked = rng.sample(WORDS, count)
    facts = [f"{name} likes {word}." for name, word in zip(found, liked, strict=True)]
    asked = rng.randrange(count)
    ask = "{t} What does {n} like?|Notes: {t} What does {n} like?|{t} Tell me what {n} likes."
    return _ask(rng, ask, facts[asked], t=" ".join(facts), n=list(found)[asked])


def _remember(rng: Random) -> Turns:
    name, place = _name(rng), _city(rng)
    messages = _user(_phrase(rng, "My name is {n}.|Hi, my name is {n}.|I am called {n}.", n=name))
    messages += _assistant(f"Nice to meet you, {name}.")
    if rng.random() < 0.5:
        messages += _user(f"I live in {place}.") + _assistant(f"I will remember that, {name}.")
        if rng.random() < 0.5:
            ask = _phrase(rng, "Where do I live?|Which place do I live in?")
            return messages + _user(ask), f"You live in {place}."
    ask = _phrase(rng, "What is my name?|Do you remember my name?|Who am I?")
    return messages + _user(ask), f"Your name is {name}."


# ---- tools ----


def _call(name: str, arguments: dict[str, object]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _request(rng: Random) -> tuple[str, str, dict[str, object]]:
    """A user's wish, the tool that serves it, and the arguments."""
    match rng.randrange(4):
        case 0:
            city = _city(rng)
            ask = _phrase(rng, WEATHER + "|Tell me the weather in {c}.|Weather in {c}?", c=city)
            return ask, "get_weather", {"city": city}
        case 1:
            city = _city(rng)
            ask = _phrase(rng, "What time is it in {c}?|Tell me the time in {c}.", c=city)
            return ask, "get_time", {"city": city}
        case 2:
            n = rng.randint(2, 90)
            asks = "Set a timer for {n} minutes.|Start a {n} minute timer.|Remind me in {n} minutes."
            return _phrase(rng, asks, n=n), "set_timer", {"minutes": n}
        case _:
            name = _name(rng)
            ask = _phrase(rng, "Call {n}.|Please call {n}.|Phone {n} now.", n=name)
            return ask, "call_contact", {"name": name}


def _tools_line(rng: Random, wanted: str) -> str:
    """What the chat template writes for a request with `tools`."""
    tools = [wanted, *rng.sample([tool for tool in TOOLS if tool != wanted], rng.randint(0, 3))]
    rng.shuffle(tools)
    return "Tools: " + ", ".join(tools)


def _tool_call(rng: Random) -> Turns:
    text, tool, arguments = _request(rng)
    system = rng.choice(("", "", rng.choice(SYSTEM_PROMPTS) + "\n")) + _tools_line(rng, tool)
    return [{"role": "system", "content": system}, *_user(text)], _call(tool, arguments)


def _tool_result(rng: Random) -> Turns:
    city, degrees = _city(rng), rng.randint(-9, 39)
    asked = _phrase(rng, WEATHER + "|Weather in {c}?", c=city)
    messages = [
        {"role": "system", "content": _tools_line(rng, "get_weather")},
        *_user(asked),
        *_assistant(_call("get_weather", {"city": city})),
        {"role": "tool", "content": json.dumps({"temperature": degrees})},
    ]
    return messages, f"It is {degrees} degrees in {city}."


# ---- closed sets ----


def _cycle(names: list[str], kind: str) -> Callable[[Random], Turns]:
    def make(rng: Random) -> Turns:
        i, step = rng.randrange(len(names)), rng.choice((1, -1))
        ask = "Which {k} comes {s} {n}?|What {k} is {s} {n}?|Name the {k} {s} {n}.|The {k} {s} {n} is"
        side = "after" if step == 1 else "before"
        return _ask(rng, ask, names[(i + step) % len(names)], k=kind, s=side, n=names[i])

    return make


def _capital(rng: Random) -> Turns:
    country, city = rng.choice(FACTS["capitals"])
    ask = (
        "What is the capital of {c}?|Name the capital of {c}.|Capital of {c}?|"
        "Which city is the capital of {c}?"
    )
    return _ask(rng, ask, f"The capital of {country} is {city}.", c=country)


def _opposite(rng: Random) -> Turns:
    a, b = rng.sample(rng.choice(FACTS["opposites"]), 2)
    ask = (
        "What is the opposite of {a}?|Opposite of {a}?|Give me the opposite of {a}.|Name the opposite of {a}."
    )
    return _ask(rng, ask, f"The opposite of {a} is {b}.", a=a)


def _stdlib(rng: Random) -> Turns:
    name, answer = rng.choice(FACTS["python"])
    ask = "What does {n} do?|What is {n} in Python?|Describe {n}.|Explain {n} in one sentence.|Python: {n}"
    return _ask(rng, ask, answer, n=name)


def _small_talk(rng: Random) -> Turns:
    asked, answer = rng.choice(FACTS["small_talk"])
    return _user(rng.choice(asked)), answer


# ---- long answers, for streams ----


def _count(rng: Random) -> Turns:
    a, length = rng.randint(1, 40), rng.randint(4, 22)
    numbers = ", ".join(map(str, range(a, a + length))) + "."
    ask = "Count from {a} to {b}.|List the numbers from {a} to {b}.|Count up from {a} to {b}."
    return _ask(rng, ask, numbers, a=a, b=a + length - 1)


def _count_down(rng: Random) -> Turns:
    a = rng.randint(4, 25)
    b = rng.randint(max(0, a - 20), a - 3)
    numbers = ", ".join(map(str, range(a, b - 1, -1))) + "."
    ask = "Count down from {a} to {b}.|Count backwards from {a} to {b}."
    return _ask(rng, ask, numbers, a=a, b=b)


def _times_table(rng: Random) -> Turns:
    n = rng.randint(1, 12)
    rows = "\n".join(f"{n} x {k} = {n * k}" for k in range(1, 11))
    ask = (
        "Show the {n} times table.|Write the multiplication table of {n}.|Multiplication table of {n}|"
        "{n} times table|Show me the table of {n}."
    )
    return _ask(rng, ask, rows, n=n)


def _numbered_list(rng: Random) -> Turns:
    word, n = rng.choice(WORDS).capitalize(), rng.randint(3, 25)
    rows = ", ".join(f"{word} {k}" for k in range(1, n + 1)) + "."
    ask = "List {w} 1 to {w} {n}.|Write down {w} 1 to {w} {n}.|Number them: {w} 1 to {w} {n}."
    return _ask(rng, ask, rows, w=word, n=n)


def _recite(rng: Random) -> Turns:
    what, text = rng.choice(list(RECITATIONS.items()))
    return _ask(rng, "Recite {w}.|List {w}.|Say {w}.|Write down {w}.|Tell me {w}.", text, w=what)


def _story(rng: Random) -> Turns:
    fields = {"n": _name(rng), "c": _city(rng), "t": rng.choice(WORDS)}
    ask = "Tell me a story about {n}, {c} and a {t}.|Write a story with {n}, {c} and a {t}."
    return _ask(rng, ask, STORY.format(**fields), **fields)


SPELL = "Spell the word {w}.|Spell {w}.|How do you spell {w}?|Spell out {w} letter by letter."
REVERSE = "Reverse {w}.|Write {w} backwards.|Reverse the word {w}.|What is {w} backwards?"
UPPER = "Uppercase {w}.|Write {w} in upper case.|Convert {w} to upper case."
LENGTH = "How many letters are in {w}?|How long is the word {w}?|Length of {w}?|Count the letters in {w}."
FIRST = "What is the first letter of {w}?|First letter of {w}?|{w} starts with which letter?"
LAST = "What is the last letter of {w}?|Last letter of {w}?|{w} ends with which letter?"

TASKS = {
    "spell": Task(_quoted(SPELL, "-".join), 1.2),
    "reverse": Task(_quoted(REVERSE, lambda word: word[::-1]), 2),
    "upper": Task(_quoted(UPPER, str.upper), 1.2),
    "lower": Task(_lower, 1),
    "length": Task(_quoted(LENGTH, len), 1.5),
    "first_letter": Task(_quoted(FIRST, lambda word: word[0]), 1),
    "last_letter": Task(_quoted(LAST, lambda word: word[-1]), 1),
    "parity": Task(_parity, 1),
    "compare": Task(_compare, 2.5),
    "max_min": Task(_max_min, 3),
    "sort_numbers": Task(_sort, 4),
    "add": Task(_add, 3),
    "subtract": Task(_subtract, 2.5),
    "multiply": Task(_multiply, 2.5),
    "units": Task(_units, 2.5),
    "number_words": Task(_number_words, 1),
    "nth_word": Task(_nth_word, 2.5),
    "copy": Task(_copy, 2),
    "extract_person": Task(_extract_person, 1.5),
    "extract_order": Task(_extract_order, 1.8),
    "tool_call": Task(_tool_call, 2),
    "tool_result": Task(_tool_result, 0.7),
    "lookup": Task(_lookup, 2.5),
    "remember": Task(_remember, 1),
    "month": Task(_cycle(MONTHS, "month"), 0.6),
    "weekday": Task(_cycle(DAYS, "day"), 0.5),
    "capital": Task(_capital, 1.2),
    "opposite": Task(_opposite, 0.8),
    "stdlib": Task(_stdlib, 5),
    "count": Task(_count, 0.8),
    "count_down": Task(_count_down, 0.6),
    "times_table": Task(_times_table, 0.6),
    "numbered_list": Task(_numbered_list, 0.6),
    "recite": Task(_recite, 0.25),
    "story": Task(_story, 0.4),
    "small_talk": Task(_small_talk, 0.8, scored=False),
}


def _draw(task: str, rng: Random) -> Sample:
    messages, answer = TASKS[task].make(rng)
    if messages[0]["role"] != "system" and rng.random() < SYSTEM_SHARE:
        messages = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *messages]
    return Sample(task, messages, answer)


def is_held_out(sample: Sample) -> bool:
    digest = hashlib.sha256(json.dumps(sample.messages).encode()).digest()
    return TASKS[sample.task].scored and int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def training_samples(rng: Random) -> Iterator[Sample]:
    """An endless mix of all tasks by weight; never a held-out prompt."""
    names, weights = list(TASKS), [task.weight for task in TASKS.values()]
    while True:
        sample = _draw(rng.choices(names, weights)[0], rng)
        if not is_held_out(sample):
            yield sample


def held_out_samples(per_task: int) -> list[Sample]:
    """Up to `per_task` distinct held-out prompts of each scored task, always the same; small sets: fewer."""
    samples: list[Sample] = []
    for task in (name for name, entry in TASKS.items() if entry.scored):
        rng = Random(f"held out {task}")
        found: dict[str, Sample] = {}
        for _ in range(64 * per_task):
            sample = _draw(task, rng)
            if is_held_out(sample):
                found.setdefault(json.dumps(sample.messages), sample)
            if len(found) == per_task:
                break
        samples += found.values()
    return samples
