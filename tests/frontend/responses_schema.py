"""Checks what /v1/responses says, by OpenAI's published document and, strictly, its library's types."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_DOCUMENT = json.loads((Path(__file__).parent / "openai_responses.json").read_text())
_SCHEMAS = _DOCUMENT["components"]
_EVENT = jsonschema_rs.validator_for(_DOCUMENT)
_RESPONSE = jsonschema_rs.validator_for({"$ref": "#/components/schemas/Response", "components": _SCHEMAS})
_EVENT_TYPE: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check_event(event: dict[str, Any]) -> None:
    """Raises what is wrong with it."""
    _EVENT.validate(event)
    _EVENT_TYPE.validate_json(json.dumps(event), strict=True)


def check_response(response: dict[str, Any]) -> None:
    """Raises what is wrong with it."""
    _RESPONSE.validate(response)
    Response.model_validate_json(json.dumps(response), strict=True)
