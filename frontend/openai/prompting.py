"""From what a client sends to prompts as token ids: chat messages, texts, or ids. Long ones in a thread."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts

from ..chat_template import RESERVED
from ..service import Service
from ..streams import Prompt
from ..tokenizer import INLINE_CHARS
from ..tools import Tool
from .fields import CHARS_PER_TOKEN, check_text_length
from .messages import ChatMessage, check_num_parts, num_chars, num_extra_chars, template_messages

MESSAGE_CHARS = CHARS_PER_TOKEN
"""What a message adds to the length of its content: at least a token, in any template."""


class ChatFields(Protocol):
    """The fields of a request that becomes a prompt through the chat template; None: not given."""

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...

    @property
    def add_special_tokens(self) -> bool | None:
        """Beginning-of-sequence and the like besides those in the template; not unless asked for."""

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...


class TruncatedFields(Protocol):
    """Of a request whose prompts may be cut; None: not asked for."""

    @property
    def truncate_prompt_tokens(self) -> int | None: ...


async def encode_chat(
    service: Service,
    chat: list[ChatMessage],
    fields: ChatFields,
    facts: EngineFacts | None,
    *,
    tools: Sequence[Tool] = (),
    defaults: Mapping[str, Any] | None = None,
    param: str = "messages",
) -> Prompt:
    """Render and tokenize. Raises InvalidRequest.

    `tools`: those that the model is told of. `defaults`: the template's variables, unless the request's own.
    `param`: where the messages come from.
    """
    template = service.template
    if template is None:
        raise InvalidRequest(
            "this model has no chat template; use /v1/completions, or serve it with --chat-template FILE",
            param=param,
        )
    variables = {**(defaults or {}), **(fields.chat_template_kwargs or {})}
    if clash := RESERVED & variables.keys():
        names = ", ".join(sorted(clash))
        raise InvalidRequest(
            f"chat_template_kwargs: {names} cannot be given here", param="chat_template_kwargs"
        )
    going_on = bool(fields.continue_final_message)
    if going_on and fields.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: cannot be combined with add_generation_prompt",
            param="continue_final_message",
        )
    check_num_parts([message.content for message in chat], param)
    shown = [tool.for_template() for tool in tools]
    size = num_chars(chat) + len(chat) * MESSAGE_CHARS
    if facts is not None:
        check_text_length(size, facts, param)

    def render() -> str:
        return template.render(
            template_messages(chat),
            tools=shown,
            add_generation_prompt=not going_on and fields.add_generation_prompt is not False,
            continue_final_message=going_on,
            variables=variables,
            param=param,
        )

    size += num_extra_chars(chat) + sum(len(msgspec.json.encode(one)) for one in (variables, shown) if one)
    text = render() if size <= INLINE_CHARS else await service.tokenizer.in_thread(render)
    ids = await service.tokenizer.encode([text], add_special_tokens=bool(fields.add_special_tokens))
    return Prompt(ids[0], text)


def reasoning_variables(effort: str | None) -> dict[str, Any]:
    """Variables of chat templates. One that knows none of them is not changed by any effort."""
    if effort is None:
        return {}
    off = {"enable_thinking": False, "thinking": False} if effort == "none" else {}
    return {"reasoning_effort": effort, **off}


def texts_or_ids(given: list[Any], param: str) -> tuple[list[str], list[list[int]]]:
    """Of a field that takes texts, ids, or lists of ids: texts, or each prompt's ids. Looked through once, as
    it may hold a whole body of them. Raises InvalidRequest."""
    kinds = set(map(type, given))
    if kinds == {str}:
        return given, []
    if kinds == {int}:
        return [], [given]
    if kinds == {list}:
        return [], given
    raise InvalidRequest(f"{param}: texts, ids and lists of ids cannot be mixed", param=param)


async def encode_texts(
    service: Service,
    texts: Sequence[str],
    facts: EngineFacts | None,
    *,
    add_special_tokens: bool,
    param: str = "prompt",
) -> list[Prompt]:
    """Tokenize. Raises InvalidRequest."""
    if facts is not None:
        check_text_length(max(map(len, texts)), facts, param)
    ids = await service.tokenizer.encode(texts, add_special_tokens=add_special_tokens)
    return [Prompt(one, text) for one, text in zip(ids, texts, strict=True)]


def truncated(
    prompts: Sequence[Prompt], request: TruncatedFields, facts: EngineFacts, answer: int | None
) -> Sequence[Prompt]:
    """The ends of the prompts, if that is asked for; one that is cut no longer has its text.

    `answer`: tokens to leave room for. Raises InvalidRequest.
    """
    name, most = "truncate_prompt_tokens", request.truncate_prompt_tokens
    if most is None:
        return prompts
    if most < 0:
        most = facts.max_model_len - (answer or 1)
    if most < 1:
        raise InvalidRequest(f"{name}: no token of the prompt would be left", param=name)
    return [one if len(one.token_ids) <= most else Prompt(one.token_ids[-most:]) for one in prompts]


def check_not_empty(prompts: Sequence[Prompt], param: str) -> None:
    """A model continues something. Raises InvalidRequest."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise InvalidRequest(f"{param}: empty; it must come to at least one token", param=param)
