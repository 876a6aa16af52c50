"""Takes a step's tokens to the requests they belong to, and decides which of those end. Hot path.

The decoding rows of a client are delivered in bulk, as columns. What is out of the ordinary is delivered
row by row: prompt chunks, requests that have left or moved since the step was planned, failed rows.
"""

from array import array
from collections.abc import Sequence

from protocol import columns
from protocol.errors import InternalError, NoTokenAllowed, NumericalError, TernError
from protocol.messages import NO_TOKEN, Finish, PromptLogprobs
from protocol.steps import StepResult

from .clients import Client
from .decode_batch import LaneStep
from .planned_step import PlannedStep
from .request import Request, State

_NO_FINISH = bytes(1)
_INDEX_BYTES, _ID_BYTES = 4, 8


class Delivery:
    """One result on its way. `finished` are the requests that it ends, `constrained` those whose grammars
    have to learn of their new token, `num_tokens` is what it brought."""

    def __init__(self, planned: PlannedStep, result: StepResult) -> None:
        self.finished: list[Request] = []
        self.constrained: list[Request] = []
        self.num_tokens = 0
        self._planned = planned
        self._result = result
        self._place_of: dict[int, tuple[Client, Request, int]] = {}
        """Of a plan's row: (client, request, row in the client's columns); only for log-probabilities."""

    def run(self) -> None:
        planned, result = self._planned, self._result
        tokens = columns.unpack_ids(result.token_ids)
        first = 0
        failed = {row for row, _ in result.failed_rows}
        for lane in planned.lanes:
            end = first + len(lane.view.requests)
            self._lane(lane, tokens[first:end], first, failed)
            first = end
        for row, request in enumerate(planned.chunks, first):
            if tokens[row] != NO_TOKEN and row not in planned.echoes:
                self._one(request, tokens[row], row)
        if result.embeddings:
            requests = planned.requests
            for row, vector in result.embeddings:
                self._embedding(requests[row], vector)
        if result.logprobs is not None:
            for place, row in enumerate(columns.unpack(columns.UINT32, result.logprobs.rows)):
                if row in self._place_of:
                    client, request, ours = self._place_of[row]
                    client.logprobs.append((ours, result.logprobs, place))
                    if request.transcript is not None:
                        request.transcript.add(result.logprobs, place)
        for row, first_position, block in result.prompt_logprobs:
            request = planned.request_at(row)
            if request.state is not State.ENDED:
                report = PromptLogprobs(request.request_id, first_position, block)
                request.client.prompt_logprobs.append(report)
                if request.transcript is not None:
                    request.transcript.add_prompt(report)

    def _lane(self, lane: LaneStep, tokens: "array[int]", first: int, failed: set[int]) -> None:
        """All rows of one client that decode."""
        view = lane.view
        requests = view.requests
        request_ids, indexes = view.request_ids, lane.indexes
        rows: list[int] | None = None
        strays = self._planned.strays
        if strays or failed:
            there = [
                row for row, request in enumerate(requests) if request in strays or first + row in failed
            ]
            if there:
                for row in there:
                    if requests[row] in strays and first + row not in failed:
                        self._one(requests[row], tokens[row], first + row)
                out = set(there)
                rows = [row for row in range(len(requests)) if row not in out]
                requests = tuple([requests[row] for row in rows])
                request_ids, indexes = _pick(request_ids, _ID_BYTES, rows), _pick(indexes, _INDEX_BYTES, rows)
                tokens = array(columns.INT32, [tokens[row] for row in rows])
        if rows is None:
            view.unread.add(view, tokens)
        else:
            for request, token in zip(requests, tokens, strict=True):
                request.token_ids.append(token)
        finishes = _NO_FINISH * len(requests)
        ends: dict[int, Finish] = {}
        for request in self._planned.last_tokens:
            if request in requests:
                ends[requests.index(request)] = Finish.LENGTH
        if view.stop_token_ids and not view.stop_token_ids.isdisjoint(tokens):
            for row, token in enumerate(tokens):
                if token in requests[row].stop_token_ids:
                    ends[row] = Finish.STOP
        if ends:
            column = bytearray(finishes)
            for row, finish in ends.items():
                column[row] = requests[row].finish = finish
                self.finished.append(requests[row])
            finishes = bytes(column)
        began = view.client.add_rows(request_ids, indexes, tokens.tobytes(), finishes)
        self.num_tokens += len(requests)
        if self._result.logprobs is not None:
            for place, request in enumerate(requests):
                row = first + (place if rows is None else rows[place])
                self._place_of[row] = view.client, request, began + place

    def _embedding(self, request: Request, vector: bytes) -> None:
        """All that was wanted of a request."""
        if request.state is State.ENDED:
            return
        request.finish = Finish.STOP
        request.client.add_end(request, Finish.STOP)
        request.client.embeddings.append((request.request_id, vector))
        self.finished.append(request)

    def _one(self, request: Request, token: int, row: int) -> None:
        """One row by itself; nothing if its request ended while the step was in flight."""
        if request.state is State.ENDED:
            return
        self.num_tokens += 1
        ours = _append(request, token)
        if self._result.logprobs is not None:
            self._place_of[row] = request.client, request, ours
        if request.finish:
            self.finished.append(request)
        elif request.grammar is not None:
            self.constrained.append(request)


def deliver(planned: PlannedStep, result: StepResult) -> Delivery:
    """Append each row's token to its request and to its client's columns.

    Rows of requests that ended while the step was in flight are dropped.
    """
    delivery = Delivery(planned, result)
    delivery.run()
    return delivery


def deliver_forced(request: Request, token_ids: Sequence[int]) -> int:
    """Tokens that its grammar leaves no choice about, up to the request's end. Returns how many."""
    for count, token in enumerate(token_ids, 1):
        _append(request, token)
        if request.finish:
            return count
    return len(token_ids)


def _append(request: Request, token: int) -> int:
    """A token, and whether it is the last. Returns its row in the client's columns."""
    token_ids = request.token_ids
    index = len(token_ids) - request.num_prompt_tokens
    token_ids.append(token)
    if token in request.stop_token_ids:
        request.finish = Finish.STOP
    elif len(token_ids) >= request.max_total_tokens:
        request.finish = Finish.LENGTH
    return request.client.add_row(request.request_id, index, token, request.finish)


def already_finished(request: Request) -> Finish:
    """For a request that is resumed with ids: whether those already are a whole answer."""
    if request.num_output_tokens and request.token_ids[-1] in request.stop_token_ids:
        return Finish.STOP
    if request.num_tokens >= request.max_total_tokens:
        return Finish.LENGTH
    return Finish.NONE


def row_error(code: str) -> TernError:
    """What a request ends with whose row failed with this code."""
    if code == NumericalError.code:
        return NumericalError("the model produced NaN or infinity for this request")
    if code == NoTokenAllowed.code:
        rule = "allowed_token_ids, bad_words and min_tokens leave no token to go on with"
        return NoTokenAllowed(rule, param="bad_words")
    return InternalError("the model failed on this request")


def _pick(column: bytes, width: int, rows: list[int]) -> bytes:
    return b"".join([column[row * width : (row + 1) * width] for row in rows])
