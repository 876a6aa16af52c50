"""The tasks that the bundled model is taught: endless training samples and a fixed held-out set.

Every prompt has exactly one right answer, so a benchmark can send `messages` to a server and compare strings.
The tasks themselves are in scripts/tasks, by kind. Knows nothing about torch, tokens or the model.

A prompt belongs to the held-out set by a hash of its whole text (one in sixteen), and training skips those.
Closed sets (facts, capitals, months, recitations) share their answers between both sides: there the phrasing
and the system prompt are what is held out. Small talk is taught whole and never scored.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from scripts.tasks import closed_sets, copying, letters, long_answers, numbers, tool_calls
from scripts.tasks.wording import DAYS, MONTHS, SYSTEM_PROMPTS, Message, Turns

HELD_OUT_ONE_IN = 16
SYSTEM_SHARE = 0.4  # of all prompts, held out or not


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


TASKS = {
    "spell": Task(letters.quoted(letters.SPELL, "-".join), 1.2),
    "reverse": Task(letters.quoted(letters.REVERSE, lambda word: word[::-1]), 2),
    "upper": Task(letters.quoted(letters.UPPER, str.upper), 1.2),
    "lower": Task(letters.lower, 1),
    "length": Task(letters.quoted(letters.LENGTH, len), 1.5),
    "first_letter": Task(letters.quoted(letters.FIRST, lambda word: word[0]), 1),
    "last_letter": Task(letters.quoted(letters.LAST, lambda word: word[-1]), 1),
    "parity": Task(numbers.parity, 1),
    "compare": Task(numbers.compare, 2.5),
    "max_min": Task(numbers.max_min, 3),
    "sort_numbers": Task(numbers.sort, 4),
    "add": Task(numbers.add, 3),
    "subtract": Task(numbers.subtract, 2.5),
    "multiply": Task(numbers.multiply, 2.5),
    "units": Task(numbers.units, 2.5),
    "number_words": Task(numbers.number_words, 1),
    "nth_word": Task(copying.nth_word, 2.5),
    "copy": Task(copying.copy, 2),
    "extract_person": Task(copying.extract_person, 1.5),
    "extract_order": Task(copying.extract_order, 1.8),
    "tool_call": Task(tool_calls.tool_call, 2),
    "tool_result": Task(tool_calls.tool_result, 0.7),
    "lookup": Task(copying.lookup, 2.5),
    "remember": Task(copying.remember, 1),
    "month": Task(closed_sets.cycle(MONTHS, "month"), 0.6),
    "weekday": Task(closed_sets.cycle(DAYS, "day"), 0.5),
    "capital": Task(closed_sets.capital, 1.2),
    "opposite": Task(closed_sets.opposite, 0.8),
    "stdlib": Task(closed_sets.stdlib, 5),
    "count": Task(long_answers.count, 0.8),
    "count_down": Task(long_answers.count_down, 0.6),
    "times_table": Task(long_answers.times_table, 0.6),
    "numbered_list": Task(long_answers.numbered_list, 0.6),
    "recite": Task(long_answers.recite, 0.25),
    "story": Task(long_answers.story, 0.4),
    "small_talk": Task(closed_sets.small_talk, 0.8, scored=False),
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
