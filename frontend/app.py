"""The routes, and the layers around them. What each endpoint does is in openai/ and anthropic/."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.frontend_options import FrontendOptions

from . import playground
from .anthropic.errors import PATH as ANTHROPIC_PATH
from .anthropic.errors import AnthropicErrors
from .anthropic.messages import CountTokens, Messages
from .cross_site import CrossSite
from .keys import api_keys
from .middleware import PUBLIC_PATHS, Authentication, BodyLimit, Edge, RootPath
from .openai.chat import ChatCompletions
from .openai.completions import Completions
from .openai.document import Document
from .openai.embeddings import Embeddings
from .openai.models import Models
from .openai.responses.endpoint import Responses
from .openai.responses.input_items import InputItems
from .openai.responses.past import PastResponses
from .openai.responses.stored import StoredResponses
from .openai.status import Status
from .openai.tokenize import Tokenization
from .rebinding import Rebinding, is_exposed
from .request_log import Ledger
from .service import Service

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Asgi:
    """Starlette calls a plain function with a Request, and anything else with scope, receive and send."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)


class _Routes:
    """The router, which raises for what it does not know when it is part of an app."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of one frontend. Raises StartupError when its keys cannot be read."""
    keys = api_keys(service.options)
    options, responses = service.options, service.metrics.responses
    limited = BodyLimit(_Routes(routes(service, keys)), options.max_body_bytes)
    guarded: ASGIApp = CrossSite(
        Authentication(limited, keys, public_paths(options)), options.allowed_origins
    )
    if is_exposed(options, keys):
        guarded = Rebinding(guarded, (options.host, *options.allowed_hosts))
    ledger = Ledger(lambda status: responses.labels(status).inc(), log_requests=options.log_requests)
    app: ASGIApp = Edge(guarded, {ANTHROPIC_PATH: AnthropicErrors()}, ledger)
    if options.allowed_origins:
        app = _with_cors(app, options.allowed_origins)
    return RootPath(app, options.root_path) if options.root_path else app


def public_paths(options: FrontendOptions) -> frozenset[str]:
    """What needs no key: how the server is, and the playground's own files, which say nothing of it."""
    return PUBLIC_PATHS | playground.load().keys() if options.playground else PUBLIC_PATHS


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Browsers' questions before a request are answered without a key: they cannot carry one."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
        max_age=3600,
    )


def routes(service: Service, keys: Sequence[str]) -> list[BaseRoute]:
    """All there are."""
    models, text, status = Models(service), Tokenization(service), Status(service)
    past = PastResponses(service)
    responses = Responses(service, past)
    stored = StoredResponses(service, past, responses.background)
    pages = {
        "/live/state": service.live.state,
        "/live/events": service.live.events,
        **{path: file.get for path, file in playground.load().items()},
    }
    absent = () if service.options.playground else pages.keys()
    document = Document(PUBLIC_PATHS if keys else None, absent, service.options.root_path)

    def get(path: str, endpoint: Endpoint) -> BaseRoute:
        return Route(path, _Asgi(endpoint), methods=["GET"])

    def post(path: str, endpoint: Endpoint) -> BaseRoute:
        return Route(path, _Asgi(endpoint), methods=["POST"])

    def delete(path: str, endpoint: Endpoint) -> BaseRoute:
        return Route(path, _Asgi(endpoint), methods=["DELETE"])

    return [
        post("/v1/chat/completions", ChatCompletions(service)),
        post("/v1/completions", Completions(service)),
        post("/v1/responses", responses),
        get("/v1/responses/{id}", stored.get),
        post("/v1/responses/{id}/cancel", stored.cancel),
        get("/v1/responses/{id}/input_items", InputItems(past).get),
        delete("/v1/responses/{id}", stored.delete),
        post("/v1/messages", Messages(service)),
        post("/v1/messages/count_tokens", CountTokens(service)),
        post("/v1/embeddings", Embeddings(service)),
        get("/v1/models", models.list),
        get("/v1/models/{id:path}", models.get),
        post("/tokenize", text.tokenize),
        post("/detokenize", text.detokenize),
        get("/health", status.ready),
        get("/health/live", status.live),
        get("/health/ready", status.ready),
        get("/load", status.load),
        get("/version", status.version),
        get("/metrics", status.metrics),
        get("/openapi.json", document.get),
        *(get(path, endpoint) for path, endpoint in pages.items() if path not in absent),
    ]
