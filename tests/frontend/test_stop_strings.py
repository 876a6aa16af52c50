"""The first stop string to be complete ends the text, however the text comes in pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.stop_strings import StopStrings

_STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4)
_TEXT = st.text("abc", max_size=30)


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The rule itself: the least end; of those, the longest stop string."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def feed(matcher: StopStrings, pieces: list[str]) -> list[str]:
    sent = []
    for piece in pieces:
        sent.append(matcher.push(piece))
        if matcher.found is not None:
            return sent
    return [*sent, matcher.flush()]


@given(text=_TEXT, stops=_STOPS, include=st.booleans(), cuts=st.sets(st.integers(0, 30)))
def test_the_same_cut_however_it_comes(text: str, stops: list[str], include: bool, cuts: set[int]) -> None:
    edges = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    matcher = StopStrings(stops, include=include)
    sent = "".join(feed(matcher, pieces))
    assert (sent, matcher.found) == cut(text, stops, include)


@given(text=_TEXT, stops=_STOPS)
def test_nothing_is_held_that_could_be_sent(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops, include=False)
    sent = ""
    for position, char in enumerate(text):
        sent += matcher.push(char)
        if matcher.found is not None:
            return
        held = text[len(sent) : position + 1]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        (["4\n", "\nQ: next"], ["4", ""]),
        (["4\n", "\n"], ["4", "", "\n\n"]),
        (["4\n", "5"], ["4", "\n5", ""]),
    ],
)
def test_a_tail_that_could_begin_one_is_held_back(pieces: list[str], sent: list[str]) -> None:
    assert feed(StopStrings(["\n\nQ:"], include=False), pieces) == sent
