"""What any client must be told about a request at the door, whether or not its frontend has looked."""

import itertools

from protocol.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, Overloaded, Unsupported
from protocol.messages import EngineFacts, Submit
from protocol.options import SchedulerOptions
from protocol.sampling import NOT_WITH_GRAMMAR

from .request import Request
from .waiting import WaitingQueue

_POOLS_WAITING = 16
"""Prompts that may wait by default, in multiples of what the KV blocks hold."""


def check(submit: Submit, request: Request, facts: EngineFacts, *, grammars: bool) -> None:
    """Raise a RequestError that names the value and the rule if the request can never run.

    `grammars`: whether they can be followed here.
    """
    num_prompt, num_outputs = request.num_prompt_tokens, request.num_output_tokens
    ids = f"token ids must be within 0 … {facts.vocab_size - 1}"
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty: it needs at least one token", param="prompt")
    if num_prompt + 1 > facts.max_model_len:
        raise ContextLengthExceeded(
            f"the maximum context length is {facts.max_model_len} tokens, but the prompt has {num_prompt} "
            "and the answer needs at least one: shorten the prompt",
            param="prompt",
        )
    if min(request.token_ids) < 0 or max(request.token_ids) >= facts.vocab_size:
        raise InvalidRequest(f"the prompt holds an unknown token: {ids}", param="prompt")
    if request.num_tokens > request.max_total_tokens:
        rule = f"at most {request.max_total_tokens - num_prompt} fit max_tokens and the context"
        raise InvalidRequest(f"{num_outputs} resumed tokens: {rule}", param="resumed_token_ids")
    for token_id, _ in submit.sampling.logit_bias:
        if token_id >= facts.vocab_size:
            raise InvalidRequest(f"logit_bias names token {token_id}: {ids}", param="logit_bias")
    for name, ids_of in (
        ("allowed_token_ids", submit.sampling.allowed_token_ids),
        ("logprob_token_ids", submit.sampling.logprob_token_ids),
        ("bad_words", itertools.chain.from_iterable(submit.sampling.bad_words)),
    ):
        if (most := max(ids_of, default=0)) >= facts.vocab_size:
            raise InvalidRequest(f"{name} names token {most}: {ids}", param=name)
    if submit.embed:
        _check_embedding(submit, facts)
    elif not facts.generates:
        raise Unsupported("this model has no output head: it makes embeddings only", param="model")
    if submit.adapter and submit.adapter not in facts.adapters:
        loaded = ", ".join(facts.adapters) or "none"
        raise ModelNotFound(f"adapter {submit.adapter!r} is not loaded; loaded: {loaded}", param="adapter")
    if submit.grammar:
        if not grammars:
            raise Unsupported("grammar: this engine core has been given no tokenizer", param="grammar")
        for field, what in NOT_WITH_GRAMMAR.items():
            if getattr(submit.sampling, field):
                raise InvalidRequest(f"{field}: not together with a grammar, which alone {what}", param=field)


def _check_embedding(submit: Submit, facts: EngineFacts) -> None:
    if not facts.embedding_size:
        raise Unsupported("this model makes no embeddings", param="model")
    for field in ("resumed_token_ids", "grammar", "key"):
        if getattr(submit, field):
            raise InvalidRequest(f"{field}: not together with embed, which has no answer", param=field)
    for field in ("logprobs", "prompt_logprobs"):
        if getattr(submit.sampling, field) is not None:
            raise InvalidRequest(f"{field}: not together with embed, which has no answer", param=field)


def check_room(
    request: Request,
    waiting: WaitingQueue,
    options: SchedulerOptions,
    facts: EngineFacts,
    retry_after_s: float,
) -> None:
    """Raise Overloaded if the queue is full, by requests or by the tokens (and so the blocks) they need."""
    if len(waiting) >= options.max_num_waiting:
        reason = f"{len(waiting)} requests wait already, the most allowed (--max-num-waiting)"
        raise Overloaded(f"{reason}: try again later", retry_after_s=retry_after_s)
    most = options.max_waiting_tokens or _POOLS_WAITING * facts.kv_tokens[1]
    if len(waiting) and waiting.num_tokens + request.num_tokens > most:
        reason = (
            f"prompts of {waiting.num_tokens} tokens wait already, of {most} allowed (--max-waiting-tokens)"
        )
        raise Overloaded(f"{reason}: try again later", retry_after_s=retry_after_s)
