"""Pulse: a word every interval while there is work, and none otherwise."""

from engine_core.pulse import Pulse
from protocol.control import Busy
from protocol.messages import EngineStats


class Core:
    def __init__(self, interval_s: float) -> None:
        self.told: list[Busy] = []
        self.tokens = 0
        self.pulse = Pulse(interval_s, lambda: EngineStats(generation_tokens=self.tokens), self.told.append)

    def turns(self, *times: float, busy: bool = True) -> None:
        for now in times:
            self.tokens += 1
            self.pulse.look(busy=busy, now=now)


def test_each_interval_of_work_is_told_with_what_was_done_in_it() -> None:
    core = Core(10)
    core.turns(5, 6, 14.9)
    assert core.told == []
    core.turns(15.5, 20, 25.5)
    first, second = core.told
    assert (first.seconds, second.seconds) == (10.5, 10.0)
    assert first.now == second.before
    assert [one.now.generation_tokens - one.before.generation_tokens for one in core.told] == [3, 2]


def test_an_idle_engine_core_says_nothing_and_idle_time_is_not_counted() -> None:
    core = Core(10)
    core.turns(0, 9)
    core.turns(9.5, 100, 200, busy=False)
    core.turns(300, 309)
    assert core.told == []
    core.turns(310)
    assert [one.seconds for one in core.told] == [10]


def test_an_interval_of_zero_is_never() -> None:
    core = Core(0)
    core.turns(0, 1, 2, 1000)
    assert core.told == []
