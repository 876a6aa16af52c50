"""Takes a step's tokens to the requests they belong to, and decides which of those end. Hot path."""

from protocol import columns
from protocol.messages import NO_TOKEN, Finish, PromptLogprobs
from protocol.steps import StepResult

from .request import Request, State
from .scheduler import PlannedStep


def deliver(planned: PlannedStep, result: StepResult) -> tuple[list[Request], int]:
    """Append each row's token to its request and to its client's columns.

    Returns the requests that have finished and the number of tokens. Rows of requests that ended while
    the step was in flight are dropped.
    """
    finished: list[Request] = []
    num_tokens = 0
    ended = State.ENDED
    delivered_at: dict[int, tuple[Request, int]] = {}
    wants_logprobs = result.logprobs is not None
    for row, (request, token) in enumerate(
        zip(planned.rows, columns.unpack_ids(result.token_ids), strict=True)
    ):
        if token == NO_TOKEN or request.state is ended:
            continue
        token_ids = request.token_ids
        token_ids.append(token)
        num_tokens += 1
        finish = 0
        if token in request.stop_token_ids:
            finish = 1
        elif len(token_ids) >= request.max_total_tokens:
            finish = 2
        client = request.client
        if not request.first_token_sent:
            request.first_token_sent = True
            client.started.append((request.request_id, request.num_cached_tokens))
        if wants_logprobs:
            delivered_at[row] = request, len(client.request_ids)
        client.request_ids.append(request.request_id)
        client.indexes.append(len(token_ids) - request.num_prompt_tokens - 1)
        client.token_ids.append(token)
        client.finishes.append(finish)
        if finish:
            finished.append(request)
    if result.logprobs is not None:
        for place, row in enumerate(columns.unpack(columns.UINT32, result.logprobs.rows)):
            if row in delivered_at:
                request, ours = delivered_at[row]
                request.client.logprobs.append((ours, result.logprobs, place))
    for row, first_position, block in result.prompt_logprobs:
        request = planned.rows[row]
        if request.state is not ended:
            request.client.prompt_logprobs.append(PromptLogprobs(request.request_id, first_position, block))
    return finished, num_tokens


def already_finished(request: Request) -> Finish:
    """For a request that is resumed with ids: whether those already are a whole answer."""
    if request.num_output_tokens and request.token_ids[-1] in request.stop_token_ids:
        return Finish.STOP
    if request.num_tokens >= request.max_total_tokens:
        return Finish.LENGTH
    return Finish.NONE
