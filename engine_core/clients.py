"""Client: one attached frontend (or stranger), and what the current step has for it.

request_ids  │ 7 │ 9 │ 12 │   one row per token, in columns, so that a step costs one message
indexes      │ 0 │ 41│ 3  │   per client whatever the batch
token_ids    │ …
finishes     │ …
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from protocol import columns
from protocol.messages import (
    NO_TOKEN,
    ClientMessage,
    EngineMessage,
    Finish,
    LogprobBlock,
    Outputs,
    PromptLogprobs,
    Refused,
)

if TYPE_CHECKING:
    from .request import Request


class ClientLink(Protocol):
    """The engine core's end of the link to its clients."""

    @property
    def dropped_frames(self) -> int:
        """Frames that did not decode."""

    def drain(self) -> list[tuple[bytes, ClientMessage]]:
        """What has arrived, with the peers that sent it."""

    def send(self, peer: bytes, message: EngineMessage) -> bool:
        """Queue a message. False: the peer is gone, or has stopped consuming."""


ROWS_PER_PARCEL = 8192
"""With twenty likeliest tokens a row has 185 bytes: 1.5 MB of the 16 that a frame may have."""


class Rows:
    """One Outputs in the making."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._request_ids = array(columns.UINT64)
        self._indexes = array(columns.UINT32)
        self._token_ids = array(columns.INT32)
        self._finishes = bytearray()
        self.logprobs: list[tuple[int, LogprobBlock, int]] = []
        """(our row, the worker's block, its row there)"""
        self.started: list[tuple[int, int]] = []
        """(request id, tokens found in the prefix cache)"""
        self.prompt_logprobs: list[PromptLogprobs] = []
        self.embeddings: list[tuple[int, bytes]] = []

    def add_rows(self, request_ids: bytes, indexes: bytes, token_ids: bytes, finishes: bytes) -> int:
        """Rows in packed columns (see Outputs). Returns the number of the first one."""
        first = len(self._finishes)
        self._request_ids.frombytes(request_ids)
        self._indexes.frombytes(indexes)
        self._token_ids.frombytes(token_ids)
        self._finishes += finishes
        return first

    def add_row(self, request_id: int, index: int, token_id: int, finish: int = Finish.NONE) -> int:
        """One row. Returns its number."""
        self._request_ids.append(request_id)
        self._indexes.append(index)
        self._token_ids.append(token_id)
        self._finishes.append(finish)
        return len(self._finishes) - 1

    def add_end(self, request: "Request", finish: Finish) -> None:
        """A row without a token, for a request that ends between steps."""
        self.add_row(request.request_id, request.num_output_tokens, NO_TOKEN, finish)

    def take(self, epoch: int, step: int) -> Outputs | None:
        """The message, or None when there is nothing to say."""
        if not self._finishes and not self.prompt_logprobs:
            return None
        outputs = Outputs(
            epoch=epoch,
            step=step,
            request_ids=self._request_ids.tobytes(),
            indexes=self._indexes.tobytes(),
            token_ids=self._token_ids.tobytes(),
            finishes=bytes(self._finishes),
            logprobs=_gather(self.logprobs),
            started=tuple(self.started),
            prompt_logprobs=tuple(self.prompt_logprobs),
            embeddings=tuple(self.embeddings),
        )
        self._clear()
        return outputs


class Client(Rows):
    """A peer of the clients' socket; `requests` are those that have not had their last message."""

    def __init__(self, peer: bytes, name: str, incarnation: int) -> None:
        super().__init__()
        self.peer = peer
        self.name = name
        self.incarnation = incarnation
        self.requests: dict[int, Request] = {}
        self._parcels: list[Rows] = []
        """What is sent again, before anything of the current step: apart, as each must fit a frame."""
        self._refusals: list[Refused] = []

    def refuse(self, refused: Refused) -> None:
        """The last message of a request, behind all rows there are for it: what comes later is not read."""
        self._refusals.append(refused)

    def resend(self, request: "Request", first: int) -> None:
        """All that is known of a request's outputs from index `first` on, as if it came from other steps."""
        transcript, total = request.transcript, request.num_output_tokens
        for report in transcript.prompt_logprobs if transcript is not None else ():
            self._parcel().prompt_logprobs.append(structs.replace(report, request_id=request.request_id))
        for begin in range(first, total, ROWS_PER_PARCEL):
            self._resend_rows(request, begin, min(begin + ROWS_PER_PARCEL, total))
        if first == total and request.finish:
            self._parcel().add_end(request, request.finish)

    def _resend_rows(self, request: "Request", begin: int, end: int) -> None:
        parcel, transcript, count = self._parcel(), request.transcript, end - begin
        finishes = bytearray(count)
        if end == request.num_output_tokens:
            finishes[-1] = request.finish
        parcel.add_rows(
            columns.pack(columns.UINT64, [request.request_id]) * count,
            columns.pack(columns.UINT32, range(begin, end)),
            request.token_ids[request.num_prompt_tokens + begin : request.num_prompt_tokens + end].tobytes(),
            bytes(finishes),
        )
        if transcript is not None and request.sampling.logprobs is not None:
            parcel.logprobs += [(i, transcript.block(begin + i), 0) for i in range(count)]
        if request.num_cached_tokens >= 0:
            parcel.started.append((request.request_id, request.num_cached_tokens))

    def take_outputs(self, epoch: int, step: int) -> Sequence[Outputs | Refused]:
        """The messages for this client: usually one, of the current step; none when there is nothing."""
        own = self.take(epoch, step)
        if not self._parcels and not self._refusals:
            return () if own is None else (own,)
        parcels, self._parcels = self._parcels, []
        refusals, self._refusals = self._refusals, []
        made = [*(parcel.take(epoch, step) for parcel in parcels), own, *refusals]
        return [message for message in made if message is not None]

    def _parcel(self) -> Rows:
        self._parcels.append(Rows())
        return self._parcels[-1]


def _gather(rows: list[tuple[int, LogprobBlock, int]]) -> LogprobBlock | None:
    """The rows of one client out of the blocks of a step and of transcripts; bytes are cut, never parsed.

    Those of narrower blocks are filled up, as the worker fills up those of requests that want fewer.
    """
    if not rows:
        return None
    width = max([block.width for _, block, _ in rows])

    def cut_tops(field: str, filling: bytes) -> bytes:
        return b"".join(
            getattr(block, field)[4 * block.width * row : 4 * block.width * (row + 1)]
            + filling * (width - block.width)
            for _, block, row in rows
        )

    return LogprobBlock(
        rows=columns.pack(columns.UINT32, (ours for ours, _, _ in rows)),
        width=width,
        chosen=b"".join([block.chosen[4 * row : 4 * (row + 1)] for _, block, row in rows]),
        top_ids=cut_tops("top_ids", columns.pack_ids([NO_TOKEN])),
        top_values=cut_tops("top_values", bytes(4)),
    )
