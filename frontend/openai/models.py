"""GET /v1/models and /v1/models/{id}: the names that clients may ask for."""

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from ..responses import send_json
from ..service import Service


class ModelCard(Struct, frozen=True, tag_field="object", tag="model"):
    id: str
    created: int
    owned_by: str = "tern"
    root: str | None = None
    """The first name of the model that is loaded."""
    parent: str | None = None
    """Of an adapter: the model that it changes."""
    max_model_len: int | None = None
    """Longest prompt plus answer; null until an engine core has said so."""


class ModelList(Struct, frozen=True, tag_field="object", tag="list"):
    data: list[ModelCard]


class Models:
    """Both endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = (*self._service.model_names, *self._service.adapters)
        await send_json(send, ModelList([self._card(name) for name in names]))

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._card(self._service.model_name(scope["path_params"]["id"])))

    def _card(self, name: str) -> ModelCard:
        service = self._service
        facts, model = service.client.facts, service.model_names[0]
        return ModelCard(
            name,
            service.started_at,
            root=model,
            parent=model if name in service.adapters else None,
            max_model_len=facts.max_model_len if facts else None,
        )
