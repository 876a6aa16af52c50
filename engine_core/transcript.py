"""Transcript: the log-probabilities of a request's outputs so far, for a client that needs them again.

The token ids need none: the request itself has them.
"""

from protocol import columns
from protocol.messages import LogprobBlock, PromptLogprobs


class Transcript:
    """Kept only for requests that asked for log-probabilities."""

    def __init__(self, first: int) -> None:
        """`first` is the output index of the first token that will be added."""
        self.first = first
        self.prompt_logprobs: list[PromptLogprobs] = []
        self._prompt_end = 0
        self._chosen: list[bytes] = []
        self._top_ids: list[bytes] = []
        self._top_values: list[bytes] = []

    def add_prompt(self, report: PromptLogprobs) -> None:
        """A stretch of the prompt; one that was scored before, and is computed again, adds nothing."""
        end = report.first_position + len(report.block.rows) // 4
        if end > self._prompt_end:
            self._prompt_end = end
            self.prompt_logprobs.append(report)

    def add(self, block: LogprobBlock, place: int) -> None:
        """The next output's row of a worker's block."""
        width = block.width
        self._chosen.append(block.chosen[place * 4 : (place + 1) * 4])
        self._top_ids.append(block.top_ids[place * 4 * width : (place + 1) * 4 * width])
        self._top_values.append(block.top_values[place * 4 * width : (place + 1) * 4 * width])

    def block(self, index: int) -> LogprobBlock:
        """Output `index` as a block of one row."""
        place = index - self.first
        return LogprobBlock(
            rows=columns.pack(columns.UINT32, [0]),
            width=len(self._top_ids[place]) // 4,
            chosen=self._chosen[place],
            top_ids=self._top_ids[place],
            top_values=self._top_values[place],
        )
