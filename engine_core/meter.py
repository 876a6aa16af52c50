"""Meter: how long steps take, and so how many prompt tokens fit beside running answers. No clock of its own.

A step is modelled as  seconds = base + per_prompt_token * prompt_tokens,  where `base` follows the pure
decode steps and the slope follows the mixed ones.
"""

_WEIGHT = 0.25
"""Of the newest sample in the moving averages: a change shows within about five steps."""
_LEAST_CHUNK = 16


class Meter:
    """Times are seconds."""

    def __init__(self, target_s: float, most: int) -> None:
        self.target_s = target_s
        self.most = most
        self.base_s = 0.0
        self.per_prompt_token_s = 0.0
        self.steps = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    def record(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """One step is done, `seconds` after it began."""
        self.steps += 1
        self.prompt_tokens += num_prompt_tokens
        if not num_prompt_tokens:
            self.base_s += (seconds - self.base_s) * (_WEIGHT if self.base_s else 1)
            return
        base = self.base_s if num_decodes else 0.0
        slope = max(seconds - base, 0) / num_prompt_tokens
        self.per_prompt_token_s += (slope - self.per_prompt_token_s) * (
            _WEIGHT if self.per_prompt_token_s else 1
        )

    def prompt_budget(self) -> int:
        """Prompt tokens that keep a mixed step within the target; never none, so that prompts get on."""
        if not self.target_s or not self.per_prompt_token_s:
            return self.most
        room = (self.target_s - self.base_s) / self.per_prompt_token_s
        return max(_LEAST_CHUNK, min(self.most, int(room)))
