"""POST /tokenize and /detokenize: the model's tokenizer, for texts and for chat messages."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest
from protocol.sampling import TokenId

from ..responses import send_json
from ..service import Service
from .items import MOST_VALUES
from .messages import Messages
from .parse import parse, read_body
from .prompting import encode_chat, encode_texts
from .tools import ToolDefinition, tool_use


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Either a text, with special tokens unless told otherwise, or messages, which are rendered first."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[ToolDefinition] | None = None
    """With messages: those that the model is told of."""
    return_token_strs: bool | None = None


class TokenizeResponse(Struct, frozen=True):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MOST_VALUES)]


class DetokenizeResponse(Struct, frozen=True):
    prompt: str


class Tokenization:
    """Both endpoints. They need no engine core."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenize = msgspec.json.Decoder(TokenizeRequest)
        self._detokenize = msgspec.json.Decoder(DetokenizeRequest)

    async def tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = parse(self._tokenize, await read_body(receive))
        service.model_name(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("prompt: give either a prompt or messages", param="prompt")
        if request.messages is not None:
            use = tool_use(request.tools, None, None)
            prompt = await encode_chat(service, request.messages, request, None, tools=use.shown)
        else:
            special = request.add_special_tokens is not False
            texts = [request.prompt or ""]
            (prompt,) = await encode_texts(service, texts, None, add_special_tokens=special)
        facts, ids = service.client.facts, prompt.token_ids
        names: list[str] | UnsetType = UNSET
        if request.return_token_strs:
            names = await service.tokenizer.in_thread(lambda: service.tokenizer.token_strings(ids))
        await send_json(send, TokenizeResponse(len(ids), facts.max_model_len if facts else None, ids, names))

    async def detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse(self._detokenize, await read_body(receive))
        self._service.model_name(request.model)
        size = self._service.tokenizer.vocab_size
        if (wrong := next((one for one in request.tokens if one >= size), None)) is not None:
            raise InvalidRequest(
                f"tokens: id {wrong} is not in the vocabulary, 0 … {size - 1}", param="tokens"
            )
        await send_json(send, DetokenizeResponse(await self._service.tokenizer.decode_long(request.tokens)))
