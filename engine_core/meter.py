"""Meter: how long steps take, and so how many prompt tokens fit beside running answers. No clock of its own.

A step is modelled as  seconds = base(decodes) + per_prompt_token * prompt_tokens,  where `base` follows the
pure decode steps of about so many requests, and the slope follows the mixed ones.

Requests leave at a rate that is an exponentially weighted count of those that ended, so that a full queue
can say when it is worth coming back.
"""

import math
from collections import deque

from protocol.messages import STEP_TOKENS_BOUNDS, TIME_BOUNDS_S
from protocol.observation import MOST_TIMINGS

from .histogram import Histogram

_WEIGHT = 0.25
"""Of the newest sample in the moving averages: a change shows within about five steps."""
_LEAST_CHUNK = 16
_LEAST_SLOWDOWN = 5.0
"""Mixed step over pure decode step, which prompts may always cause. Where decoding alone takes most of the
target, they would be cut into chunks so small that everyone waits; four fifths of the time keep them going,
and a stream that a CPU decodes at 30 tokens a second goes on at 6, as fast as people read."""
_RATE_WINDOW_S = 10.0
"""Of the rate of ends: what is three windows old counts for nothing."""
_LONGEST_WAIT_S = 60.0


class Meter:
    """Times are seconds."""

    def __init__(self, target_s: float, most: int) -> None:
        self.target_s = target_s
        self.most = most
        self._base_s: dict[int, float] = {}
        """By the number of bits in the number of decoding requests."""
        self.per_prompt_token_s = 0.0
        self.steps = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.timings: deque[tuple[float, int, int]] = deque(maxlen=MOST_TIMINGS)
        """(seconds, running answers, prompt tokens) of the newest steps."""
        self.queue_times = Histogram(TIME_BOUNDS_S)
        self.prefill_times = Histogram(TIME_BOUNDS_S)
        self.inference_times = Histogram(TIME_BOUNDS_S)
        self.step_tokens = Histogram(STEP_TOKENS_BOUNDS)
        """See EngineStats for all four."""
        self._begun: deque[float] = deque()
        """When each step in flight was sent."""
        self._last_result = 0.0
        self._rate = 0.0
        self._rate_at = 0.0

    def begin_step(self, now: float) -> None:
        """One more is sent."""
        self._begun.append(now)

    def forget_steps(self) -> None:
        """Those in flight bring no result."""
        self._begun.clear()

    def end_step(self, num_decodes: int, num_prompt_tokens: int, now: float) -> None:
        """The result of the oldest is back. It began when it was sent, or when the one before it was done."""
        seconds = now - max(self._begun.popleft(), self._last_result)
        self._last_result = now
        self.record(num_decodes, num_prompt_tokens, seconds)

    def record(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """One step is done, `seconds` after it began."""
        self.steps += 1
        self.prompt_tokens += num_prompt_tokens
        self.timings.append((seconds, num_decodes, num_prompt_tokens))
        self.step_tokens.record(num_decodes + num_prompt_tokens)
        if not num_prompt_tokens:
            size = num_decodes.bit_length()
            before = self._base_s.get(size, seconds)
            self._base_s[size] = before + (seconds - before) * _WEIGHT
            return
        base = self.base_s(num_decodes) if num_decodes else 0.0
        slope = max(seconds - base, 0) / num_prompt_tokens
        self.per_prompt_token_s += (slope - self.per_prompt_token_s) * (
            _WEIGHT if self.per_prompt_token_s else 1
        )

    def base_s(self, num_decodes: int) -> float:
        """Of a pure decode step of so many requests; of the nearest number that was seen; 0: none was."""
        size = num_decodes.bit_length()
        if (seen := self._base_s.get(size)) is not None or not self._base_s:
            return seen or 0.0
        return self._base_s[min(self._base_s, key=lambda other: abs(other - size))]

    def record_ends(self, count: int, now: float) -> None:
        """So many requests have ended."""
        self._rate = self._rate_now(now) + count / _RATE_WINDOW_S
        self._rate_at = now

    def retry_after_s(self, num_waiting: int, now: float) -> float:
        """Until a queue of this length has room again: until a tenth of it has left, 1 … 60 s."""
        rate = self._rate_now(now)
        wanted = max(num_waiting / 10, 1.0)
        return (
            min(max(wanted / rate, 1.0), _LONGEST_WAIT_S)
            if rate * _LONGEST_WAIT_S > wanted
            else _LONGEST_WAIT_S
        )

    def _rate_now(self, now: float) -> float:
        return self._rate * math.exp((self._rate_at - now) / _RATE_WINDOW_S)

    def prompt_budget(self, num_starting: int, num_decoding: int) -> int:
        """Prompt tokens of a step, so that it stays within the target; never none, so that prompts get on.

        Where a step cannot be that short, time is shared by heads, who starts as much as who decodes: a mixed
        step may take 1 + num_starting / num_decoding pure decode steps, or five if that is more.
        """
        if not self.target_s or not self.per_prompt_token_s:
            return self.most
        base_s = self.base_s(num_decoding)
        slowdown = max(_LEAST_SLOWDOWN, 1 + num_starting / max(num_decoding, 1))
        room = (max(self.target_s, slowdown * base_s) - base_s) / self.per_prompt_token_s
        return max(_LEAST_CHUNK, min(self.most, int(room)))
