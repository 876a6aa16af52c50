"""Greedy streams of the openai package, and what befalls a server in the middle of one.

How many tokens an event holds is the scheduling's affair, so the middle is where so much text has come.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

OnText = Callable[[int], None]
"""Hears with each event how many characters have come."""


def nothing(_: int) -> None:
    """Nobody is disturbed."""


def once(act: Callable[[], object], at: int = 50) -> OnText:
    """Do this as soon as so many characters have come."""
    acts = [act]

    def on_text(length: int) -> None:
        if length >= at and acts:
            acts.pop()()

    return on_text


async def stream_text(stack: "Stack", prompt: str, length: int, on_text: OnText = nothing) -> str:
    """The answer of so many tokens."""
    async with stack.async_client() as client:
        stream = await client.completions.create(
            model=stack.model, prompt=prompt, stream=True, temperature=0, max_tokens=length,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            on_text(len(text))
        return text
