"""The supervisor's end of a control channel, and what it makes of a child's last words."""

import signal as signals

import msgspec
import pytest

from protocol.control import Channel, EngineAt, Failed, Phase, SupervisorChannel, ToChild, channel_pair
from scripts.process import describe_exit, drain, is_crash


def pair() -> tuple[SupervisorChannel, Channel[ToChild, object]]:
    ours, theirs = channel_pair()
    return ours, Channel(theirs, ToChild)


def test_everything_is_read_and_the_channel_stays_open() -> None:
    ours, theirs = pair()
    assert drain(ours) == ([], False)
    theirs.send(Phase("one"))
    theirs.send(Phase("two"))
    assert drain(ours) == ([Phase("one"), Phase("two")], False)
    theirs.close()
    assert drain(ours) == ([], True)
    ours.close()


@pytest.mark.parametrize("unread", [0, 1, 3])
def test_last_words_survive_an_end_with_unread_messages(unread: int) -> None:
    ours, theirs = pair()
    for number in range(unread):
        ours.send(EngineAt(number, "", ""))
    theirs.send(Phase("loading"))
    theirs.send(Failed("startup_error", "no such model"))
    theirs.close()
    assert drain(ours) == ([Phase("loading"), Failed("startup_error", "no such model")], True)
    ours.close()


def test_nonsense_is_a_reason_to_fail() -> None:
    ours, theirs = pair()
    theirs.socket.send(msgspec.msgpack.encode({"type": "haiku"}))
    match drain(ours):
        case [Failed(message=message)], True:
            assert "no control message" in message
            assert "haiku" in message
        case other:
            raise AssertionError(other)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "was killed by SIGKILL"),
        (3, "exited with code 3"),
        (70, "exited with code 70: its device is in an unusable state"),
        (75, "exited with code 75: out of memory"),
    ],
)
def test_exits_in_words(code: int, text: str) -> None:
    assert describe_exit(code) == text


def test_why_we_killed_it_is_told() -> None:
    assert describe_exit(-9, "it was late") == "was killed by SIGKILL (it was late)"
    assert describe_exit(0, "it was late") == "exited with code 0"


@pytest.mark.parametrize("signal", ["SEGV", "ABRT", "BUS", "ILL", "FPE"])
def test_faults_are_its_own(signal: str) -> None:
    assert is_crash(-getattr(signals, f"SIG{signal}"))


@pytest.mark.parametrize(
    ("exit_code", "crash"),
    [(0, False), (1, True), (70, True), (71, False), (75, False), (-9, False), (-15, False)],
)
def test_exits_are_its_own_and_kills_are_not(exit_code: int, crash: bool) -> None:
    assert is_crash(exit_code) is crash
