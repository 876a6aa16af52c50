"""GET /v1/models and /v1/models/{id}: the names that clients may ask for."""

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from ..responses import send_json
from ..service import Service


class ModelCard(Struct, frozen=True, tag_field="object", tag="model"):
    id: str
    created: int
    owned_by: str = "tern"
    max_model_len: int | None = None
    """Longest prompt plus answer; null until an engine core has said so."""


class ModelList(Struct, frozen=True, tag_field="object", tag="list"):
    data: list[ModelCard]


class Models:
    """Both endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, ModelList([self._card(name) for name in self._service.model_names]))

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._card(self._service.model_name(scope["path_params"]["id"])))

    def _card(self, name: str) -> ModelCard:
        facts = self._service.client.facts
        return ModelCard(name, self._service.started_at, max_model_len=facts.max_model_len if facts else None)
