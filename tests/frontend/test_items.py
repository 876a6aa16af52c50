"""Items of a body: what stands in texts does not count, wherever a slice of it ends."""

import json
import types
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.openai import items
from frontend.openai.items import check_items
from protocol.errors import InvalidRequest

TRICKY = st.text(alphabet='a\\"[{,', max_size=12)
DOCUMENTS = st.recursive(
    TRICKY | st.integers(0, 99),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=20,
)


def counted(document: Any) -> tuple[int, int, int]:
    """Containers, texts and commas between values."""
    match document:
        case str():
            return 0, 1, 0
        case list():
            parts = [counted(one) for one in document]
        case dict():
            parts = [counted(one) for pair in document.items() for one in pair]
        case _:
            return 0, 0, 0
    containers, texts, commas = (sum(part[i] for part in parts) for i in range(3))
    return containers + 1, texts, commas + max(len(document) - 1, 0)


async def passes(body: bytes, most: tuple[int, ...], patch: pytest.MonkeyPatch) -> bool:
    for name, number in zip(("MOST_CONTAINERS", "MOST_TEXTS", "MOST_VALUES"), most, strict=True):
        patch.setattr(items, name, number)
    try:
        await check_items(body)
    except InvalidRequest:
        return False
    return True


@settings(max_examples=200, deadline=None, database=None)
@given(document=DOCUMENTS, size=st.integers(1, 9))
async def test_as_many_as_there_are(document: Any, size: int) -> None:
    body, found = json.dumps(document).encode(), counted(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "UNCOUNTED_BYTES", 0)
        patch.setattr(items, "SLICE_BYTES", size)
        assert await passes(body, found, patch)
        for i, number in enumerate(found):
            fewer = (*found[:i], number - 1, *found[i + 1 :])
            assert not number or not await passes(body, fewer, patch)


@pytest.mark.parametrize("text", ["[{", '"', ",", "\\", '\\"[', 'a\\\\"'])
async def test_a_long_text_is_one_text(text: str) -> None:
    await check_items(json.dumps({"prompt": text * (1 << 20)}).encode())


async def test_others_have_their_turn_between_slices() -> None:
    """No step of it has more than one slice to look at."""
    body = b'{"a": [' + b"12345," * 250_000 + b"1]}"
    num_steps = 0

    @types.coroutine
    def counted_steps() -> Generator[Any, Any, None]:
        nonlocal num_steps
        for step in check_items(body).__await__():
            num_steps += 1
            yield step

    await counted_steps()
    assert num_steps >= len(body) // items.SLICE_BYTES


@pytest.mark.parametrize("item", [b"[]", b"{}", b"[[1]]", b'{"":1}', b'"a"', b'""', b"1", b"1.5", b"null"])
async def test_more_than_can_be_made_while_others_wait(item: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"more than \d+ (arrays and objects|texts and names|values)"):
        await check_items(b'{"a": [' + b",".join([item] * 700_000) + b"]}")
