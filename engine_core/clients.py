"""Client: one attached frontend (or stranger), and what the current step has for it.

request_ids  │ 7 │ 9 │ 12 │   one row per token, in columns, so that a step costs one message
indexes      │ 0 │ 41│ 3  │   per client whatever the batch
token_ids    │ …
finishes     │ …
"""

from typing import TYPE_CHECKING

from protocol import columns
from protocol.messages import NO_TOKEN, Finish, LogprobBlock, Outputs, PromptLogprobs

if TYPE_CHECKING:
    from .request import Request


class Client:
    """A peer of the clients' socket; `requests` are those that have not had their last message."""

    def __init__(self, peer: bytes, name: str, incarnation: int) -> None:
        self.peer = peer
        self.name = name
        self.incarnation = incarnation
        self.requests: dict[int, Request] = {}
        self._clear()

    def _clear(self) -> None:
        self.rows: list[tuple[int, int, int]] = []
        """(request id, output index, token id): one append per token, turned into columns in bulk."""
        self.ends: list[tuple[int, Finish]] = []
        """(row, why) of those rows that are their request's last"""
        self.logprobs: list[tuple[int, LogprobBlock, int]] = []
        """(our row, the worker's block, its row there)"""
        self.started: list[tuple[int, int]] = []
        """(request id, tokens found in the prefix cache)"""
        self.prompt_logprobs: list[PromptLogprobs] = []

    def add_end(self, request: "Request", finish: Finish) -> None:
        """A row without a token, for a request that ends between steps."""
        self.ends.append((len(self.rows), finish))
        self.rows.append((request.request_id, request.num_output_tokens, NO_TOKEN))

    def take_outputs(self, epoch: int, step: int) -> Outputs | None:
        """The message of this step, or None when there is nothing to say."""
        if not self.rows and not self.prompt_logprobs:
            return None
        request_ids, indexes, token_ids = zip(*self.rows, strict=True) if self.rows else ((), (), ())
        finishes = bytearray(len(self.rows))
        for row, finish in self.ends:
            finishes[row] = finish
        outputs = Outputs(
            epoch=epoch,
            step=step,
            request_ids=columns.pack(columns.UINT64, request_ids),
            indexes=columns.pack(columns.UINT32, indexes),
            token_ids=columns.pack_ids(token_ids),
            finishes=bytes(finishes),
            logprobs=_gather(self.logprobs),
            started=tuple(self.started),
            prompt_logprobs=tuple(self.prompt_logprobs),
        )
        self._clear()
        return outputs


def _gather(rows: list[tuple[int, LogprobBlock, int]]) -> LogprobBlock | None:
    """The rows of one client out of the block of the whole step; bytes are cut, never parsed."""
    if not rows:
        return None
    width = rows[0][1].width

    def cut(field: str, item_bytes: int) -> bytes:
        return b"".join(
            getattr(block, field)[row * item_bytes : (row + 1) * item_bytes] for _, block, row in rows
        )

    return LogprobBlock(
        rows=columns.pack(columns.UINT32, (ours for ours, _, _ in rows)),
        width=width,
        chosen=cut("chosen", 4),
        top_ids=cut("top_ids", 4 * width),
        top_values=cut("top_values", 4 * width),
    )
