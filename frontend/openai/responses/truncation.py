"""truncation: "auto": the oldest items of a conversation go until the rest fits beside its answer.

    user ─ message    user ─ reasoning ─ function_call ─ function_call_output ─ function_call …
    ╰─ a turn goes as a whole            ╰─ the last turn goes call by call, if it alone is too long

System and developer messages stay, and no function_call_output loses its call.
"""

from collections.abc import Awaitable, Callable, Sequence

from protocol.errors import ContextLengthExceeded
from protocol.messages import EngineFacts

from ...streams import Prompt
from ..fields import answer_budget
from .items import InputItem, PlacedItem

Encode = Callable[[Sequence[PlacedItem]], Awaitable[Prompt]]
STAYING = ("system", "developer")


async def truncated(
    items: Sequence[PlacedItem], encode: Encode, room: int, facts: EngineFacts
) -> tuple[Prompt, int]:
    """The prompt, and how many items are not in it. `room`: tokens left for the answer.

    Raises ContextLengthExceeded if not even the last items fit. Renders the logarithm of the number of turns.
    """

    async def attempt(kept: Sequence[PlacedItem]) -> Prompt:
        prompt = await encode(kept)
        num_tokens = len(prompt.token_ids)
        answer_budget(num_tokens, room, 0, facts.max_model_len, "input", "max_output_tokens")
        return prompt

    kept: list[PlacedItem] = []
    found: Prompt | None = None
    cuts = beginnings([one.item for one in items])
    first, last = 0, len(cuts)
    middle = 0  # most conversations fit as they are
    while first < last:
        rest = [*filter(_stays, items[: cuts[middle]]), *items[cuts[middle] :]]
        try:
            found, kept, last = await attempt(rest), rest, middle
        except ContextLengthExceeded:
            if middle == len(cuts) - 1:
                raise
            first = middle + 1
        middle = (first + last) // 2
    assert found is not None, "the last attempt raises if none succeeds"
    return found, len(items) - len(kept)


def beginnings(items: Sequence[InputItem]) -> list[int]:
    """Where a conversation may begin; the first is 0."""
    turns = [i for i, item in enumerate(items) if item.role == "user"]
    calls = [
        i for i in range(turns[-1] + 1 if turns else 1, len(items)) if _is_whole(items[i - 1], items[i:])
    ]
    return list(dict.fromkeys([0, *turns, *calls]))


def _is_whole(before: InputItem, rest: Sequence[InputItem]) -> bool:
    """Whether what begins there needs nothing from before."""
    if before.type in ("reasoning", "function_call"):
        return False
    made = {item.call_id for item in rest if item.type == "function_call"}
    return all(item.call_id in made for item in rest if item.type == "function_call_output")


def _stays(placed: PlacedItem) -> bool:
    return placed.item.role in STAYING
