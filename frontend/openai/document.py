"""GET /openapi.json: what this server takes and gives, as an OpenAPI 3.1 document.

Ranges, choices and required fields come from the very types that requests are decoded with. Fields that
are refused by name (refused.py) are not in it.
"""

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from ..anthropic.errors import PATH as ANTHROPIC_PATH
from ..anthropic.errors import AnthropicError
from ..anthropic.message import MessageObject, TokenCount
from ..anthropic.request import CountFields, MessagesRequest
from ..live_state import LiveState
from ..responses import ErrorBody, send_body
from .chat import ChatRequest
from .chat_events import ChatResponse
from .completion_events import CompletionResponse
from .completions import CompletionRequest
from .embeddings import EmbeddingRequest, EmbeddingResponse
from .headers import (
    IDEMPOTENCY_KEY,
    KEY_PATTERN,
    LAST_EVENT_ID,
    POSITIONS_PATTERN,
    SECONDS_PATTERN,
    TIMEOUT,
)
from .models import ModelCard, ModelList
from .responses.input_items import ItemList
from .responses.request import ResponsesRequest
from .responses.response import ResponseObject
from .responses.stored import DeletedResponse
from .status import Live, Load, Ready, Version
from .tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

Json = dict[str, Any]


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path. No `answer`: it has no fixed shape."""

    summary: str
    request: type[Struct] | None = None
    answer: type[Struct] | None = None
    media_type: str = "application/json"
    generates: bool = False
    """Takes the headers of headers.py, and can answer with a stream of events."""


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): Operation(
        summary="Answer a conversation", request=ChatRequest, answer=ChatResponse, generates=True
    ),
    ("post", "/v1/completions"): Operation(
        summary="Continue texts", request=CompletionRequest, answer=CompletionResponse, generates=True
    ),
    ("post", "/v1/responses"): Operation(
        summary="Answer a conversation of items",
        request=ResponsesRequest,
        answer=ResponseObject,
        generates=True,
    ),
    ("get", "/v1/responses/{id}"): Operation(
        summary="A past response, or the events of a background one", answer=ResponseObject
    ),
    ("post", "/v1/responses/{id}/cancel"): Operation(
        summary="End the work on a background response", answer=ResponseObject
    ),
    ("get", "/v1/responses/{id}/input_items"): Operation(
        summary="The items that it answers, a page at a time", answer=ItemList
    ),
    ("delete", "/v1/responses/{id}"): Operation(summary="Forget it", answer=DeletedResponse),
    ("post", ANTHROPIC_PATH): Operation(
        summary="Answer a conversation, in Anthropic's shape",
        request=MessagesRequest,
        answer=MessageObject,
        generates=True,
    ),
    ("post", f"{ANTHROPIC_PATH}/count_tokens"): Operation(
        summary="How many tokens its prompt has", request=CountFields, answer=TokenCount
    ),
    ("post", "/v1/embeddings"): Operation(
        summary="Turn texts into vectors", request=EmbeddingRequest, answer=EmbeddingResponse
    ),
    ("get", "/v1/models"): Operation(summary="The names that can be asked for", answer=ModelList),
    ("get", "/v1/models/{id}"): Operation(summary="One of them", answer=ModelCard),
    ("post", "/tokenize"): Operation(
        summary="Text or messages to ids", request=TokenizeRequest, answer=TokenizeResponse
    ),
    ("post", "/detokenize"): Operation(
        summary="Ids to text", request=DetokenizeRequest, answer=DetokenizeResponse
    ),
    ("get", "/health"): Operation(summary="The same as /health/ready", answer=Ready),
    ("get", "/health/live"): Operation(summary="Whether this process answers", answer=Live),
    ("get", "/health/ready"): Operation(summary="Whether requests are computed", answer=Ready),
    ("get", "/load"): Operation(summary="How much runs and waits", answer=Load),
    ("get", "/version"): Operation(summary="The server's version", answer=Version),
    ("get", "/metrics"): Operation(summary="For Prometheus", media_type="text/plain"),
    ("get", "/openapi.json"): Operation(summary="This document"),
    ("get", "/live/state"): Operation(
        summary="Requests, KV blocks and steps of this moment", answer=LiveState
    ),
    ("get", "/live/events"): Operation(
        summary="What befalls the engine core, as it happens", media_type="text/event-stream"
    ),
}

_REF = "#/components/schemas/{name}"
_HEADERS = {
    IDEMPOTENCY_KEY: (KEY_PATTERN, "It goes on without its client; the same again takes it over"),
    LAST_EVENT_ID: (POSITIONS_PATTERN, "With the former: the stream goes on behind the event with this id"),
    TIMEOUT: (SECONDS_PATTERN, "Seconds that it may take, queue included"),
}


class Document:
    """The endpoint. `public_paths` need no key; None: nothing needs one."""

    def __init__(
        self, public_paths: Collection[str] | None, absent: Collection[str] = (), root_path: str = ""
    ) -> None:
        """`absent`: paths that are switched off. `root_path` stands before all."""
        self._body = msgspec.json.encode(make_document(public_paths, absent, root_path))

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, self._body)


def make_document(
    public_paths: Collection[str] | None, absent: Collection[str] = (), root_path: str = ""
) -> Json:
    """The whole document as plain JSON data."""
    kinds = [kind for one in OPERATIONS.values() for kind in (one.request, one.answer) if kind is not None]
    _, schemas = msgspec.json.schema_components([*kinds, ErrorBody, AnthropicError], ref_template=_REF)
    paths: dict[str, Json] = {}
    for (method, path), operation in OPERATIONS.items():
        if path in absent:
            continue
        described = _describe(method, path, operation)
        if public_paths is None or path in public_paths:
            described["security"] = []
        paths.setdefault(path, {})[method] = described
    errors = {
        "Error": {"description": "Why not", "content": _json(ErrorBody)},
        "AnthropicError": {"description": "Why not", "content": _json(AnthropicError)},
    }
    return {
        "openapi": "3.1.0",
        "servers": [{"url": root_path or "/"}],
        "info": {"title": "Tern", "version": "1"},
        "paths": paths,
        "security": [{"key": []}, {"header": []}],
        "components": {
            "schemas": schemas,
            "responses": errors,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _describe(method: str, path: str, operation: Operation) -> Json:
    error = "AnthropicError" if path.startswith(ANTHROPIC_PATH) else "Error"
    described: Json = {
        "operationId": f"{method}{path.translate(str.maketrans('/.', '__', '{}'))}",
        "summary": operation.summary,
        "responses": {
            "200": {"description": operation.summary, "content": _content(operation)},
            "default": {"$ref": f"#/components/responses/{error}"},
        },
    }
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.request)}
    parameters: list[Json] = []
    if "{id}" in path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.generates:
        parameters += [
            {
                "name": name,
                "in": "header",
                "description": text,
                "schema": {"type": "string", "pattern": pattern},
            }
            for name, (pattern, text) in _HEADERS.items()
        ]
    if parameters:
        described["parameters"] = parameters
    return described


def _content(operation: Operation) -> Json:
    content = {operation.media_type: {}} if operation.answer is None else _json(operation.answer)
    if operation.generates:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _json(kind: type[Struct]) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
