"""Questions: the requests of a soak, each with one right answer. Knows no connection and no fault."""

import random
from dataclasses import dataclass
from typing import Any

from protocol.sampling import SamplingParams

_PREFIX_LENGTHS = (8, 33, 64, 150, 300)
_MOST_SUFFIX = 40
_FIRST_ID, _LAST_ID = 10, 500
"""Ordinary tokens of every model that a soak is likely to meet."""
_LENGTHS = (4, 16, 60, 150, 400)


@dataclass(frozen=True)
class Question:
    """A request that is answered the same however often it is asked."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    ignore_eos: bool
    stop: str

    def body(self, *, stream: bool) -> dict[str, Any]:
        """For /v1/completions."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
        }
        if self.stop:
            body["stop"] = [self.stop]
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def sampling(self) -> SamplingParams:
        """For an EngineClient, which knows no stop strings."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
        )


def draw(count: int, generator: random.Random) -> list[Question]:
    """Mixed lengths, prefixes that several share, greedy and seeded, with and without a stop string."""

    def ids(length: int) -> tuple[int, ...]:
        return tuple(generator.randint(_FIRST_ID, _LAST_ID) for _ in range(length))

    prefixes = [ids(length) for length in _PREFIX_LENGTHS]
    return [
        Question(
            prompt=generator.choice(prefixes) + ids(generator.randint(1, _MOST_SUFFIX)),
            max_tokens=generator.choice(_LENGTHS),
            temperature=generator.choice((0.0, 1.0)),
            seed=generator.randrange(1 << 31),
            ignore_eos=generator.random() < 0.7,
            stop=generator.choice(("", "", "th")),
        )
        for _ in range(count)
    ]
