"""Takes a step's tokens to the requests they belong to, and decides which of those end. Hot path."""

from protocol import columns
from protocol.messages import NO_TOKEN, Finish, PromptLogprobs
from protocol.steps import StepResult

from .clients import Client
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
    row_of: dict[int, tuple[Client, int]] = {}
    logprobs = result.logprobs
    tokens = columns.unpack_ids(result.token_ids)
    for row, (request, token) in enumerate(zip(planned.rows, tokens, strict=True)):
        if token == NO_TOKEN or request.state is ended:
            continue
        client, token_ids = request.client, request.token_ids
        if logprobs is not None:
            row_of[row] = client, len(client.rows)
        client.rows.append((request.request_id, len(token_ids) - request.num_prompt_tokens, token))
        token_ids.append(token)
        num_tokens += 1
        if token in request.stop_token_ids:
            finish = Finish.STOP
        elif len(token_ids) < request.max_total_tokens:
            continue
        else:
            finish = Finish.LENGTH
        client.ends.append((len(client.rows) - 1, finish))
        finished.append(request)
    if logprobs is not None:
        for place, row in enumerate(columns.unpack(columns.UINT32, logprobs.rows)):
            if row in row_of:
                client, ours = row_of[row]
                client.logprobs.append((ours, logprobs, place))
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
