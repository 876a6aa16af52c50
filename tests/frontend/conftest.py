"""A small tokenizer, a scripted engine core, and a frontend between them and HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from frontend.app import make_app
from frontend.chat_template import ChatTemplate
from frontend.grammars import Grammars
from frontend.metrics import Metrics
from frontend.response_store import ResponseStore
from frontend.server import HttpServer
from frontend.service import GenerationDefaults, Service
from frontend.tokenizer import Tokenizer
from protocol.client import EngineClient
from protocol.frontend_options import FrontendOptions
from protocol.messages import EngineFacts, Finish
from protocol.stream import TokenBatch, TokenStream
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
BOS, END = 1, 2
CORPUS = [
    "The tern flies from pole to pole and back, every year of its life.",
    "def terns(n): return [tern for tern in range(n)]  # naïve café",
    "日本語のテキスト、한국어 텍스트, текст по-русски, emoji 🐦🌍👩‍👩‍👧",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    return backend


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a checkpoint as a frontend reads."""
    folder = tmp_path_factory.mktemp("model")
    train_byte_level().save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<|bos|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "normalized": False, "special": True},
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer(model_folder)


@pytest.fixture
def facts(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> EngineFacts:
    """A module of tests may have a MAX_MODEL_LEN of its own."""
    return EngineFacts(
        model="tiny",
        vocab_size=tokenizer.vocab_size,
        max_model_len=getattr(request.module, "MAX_MODEL_LEN", 128),
        block_size=16,
        num_blocks=100,
        eos_token_ids=(END,),
        max_num_seqs=16,
        embedding_size=4,
    )


MakeEngine = Callable[[], FakeEngine]


@pytest.fixture
async def make_engine(tmp_path: Path, facts: EngineFacts) -> AsyncIterator[MakeEngine]:
    """Each call starts another engine core, at an endpoint of its own."""
    engines: list[FakeEngine] = []

    def make() -> FakeEngine:
        engines.append(FakeEngine(f"ipc://{tmp_path}/c{len(engines)}", facts))
        return engines[-1]

    yield make
    for engine in engines:
        if not engine.closed:
            engine.close()


@pytest.fixture
async def engine(make_engine: MakeEngine) -> FakeEngine:
    return make_engine()


MakeService = Callable[..., Service]


@pytest.fixture
async def make_service(
    model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> AsyncIterator[MakeService]:
    """A service whose client is attached to nothing yet."""
    clients: list[EngineClient] = []
    grammars: list[Grammars] = []

    def make(**options: Any) -> Service:
        clients.append(EngineClient("test"))
        grammars.append(Grammars(str(model_folder)))
        defaults = options.pop("defaults", GenerationDefaults())
        template = ChatTemplate.load("", model_folder, tokenizer.config, tokenizer.special_tokens)
        return Service(
            client=clients[-1],
            tokenizer=tokenizer,
            grammars=grammars[-1],
            template=options.pop("template", template),
            defaults=defaults,
            metrics=Metrics(),
            model_names=("tiny", "org/tiny"),
            adapters=options.pop("adapters", ()),
            response_store=ResponseStore(
                str(tmp_path / "responses"), options.get("response_store_bytes", 1 << 20)
            ),
            options=FrontendOptions(**options),
            seed=7,
        )

    yield make
    for client in clients:
        await client.close()
    for one in grammars:
        one.close()


@pytest.fixture
async def service(make_service: MakeService, engine: FakeEngine, request: pytest.FixtureRequest) -> Service:
    """A module of tests may have a CHAT_TEMPLATE of its own."""
    source: str | None = getattr(request.module, "CHAT_TEMPLATE", None)
    template = {} if source is None else {"template": ChatTemplate(source, {})}
    return await attached(make_service(**template), engine)


Says = Callable[[str], None]


@pytest.fixture
def says(engine: FakeEngine, ids: Callable[[str], list[int]]) -> Says:
    """says(text): so the engine core answers from now on, and ends by itself."""

    def set_answer(text: str) -> None:
        engine.answer, engine.finish = [*ids(text), END], Finish.STOP

    return set_answer


async def attached(service: Service, engine: FakeEngine) -> Service:
    service.client.reattach(engine.endpoint)
    await asyncio.wait_for(service.client.attached.wait(), DEADLINE_S)
    return service


def asgi_client(service: Service, **headers: str) -> httpx2.AsyncClient:
    """HTTP without a socket: whole responses only."""
    transport = httpx2.ASGITransport(app=make_app(service))
    return httpx2.AsyncClient(
        transport=transport, base_url="http://tern", headers=headers, timeout=DEADLINE_S
    )


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with asgi_client(service) as client:
        yield client


Serve = Callable[[Service], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """serve(service) starts a real HTTP server on a free port and returns its URL."""
    servers: list[HttpServer] = []
    running: list[asyncio.Task[None]] = []

    async def start(service: Service) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # who does not read is soon seen
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listening = asyncio.Event()
        servers.append(HttpServer(make_app(service), service.options, listener, listening.set))
        running.append(asyncio.ensure_future(servers[-1].run()))
        await asyncio.wait_for(listening.wait(), DEADLINE_S)
        return url

    yield start
    for server in servers:
        server.stop()
    await asyncio.gather(*running)


@pytest.fixture
async def live(service: Service, serve: Serve) -> AsyncIterator[httpx2.AsyncClient]:
    """HTTP over a socket, for streams."""
    async with httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def ids(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Ids of a text, without anything added."""
    return lambda text: tokenizer.encode_now([text], add_special_tokens=False)[0]


Batches = Callable[[int], None]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """batches(size): no look at any stream finds more tokens than that, however many have come."""
    look = TokenStream.__anext__

    def limit(size: int) -> None:
        found: dict[TokenStream, list[TokenBatch]] = {}

        async def next_batch(stream: TokenStream) -> TokenBatch:
            waiting = found.setdefault(stream, [])
            if not waiting:
                batch = await look(stream)
                ids, logprobs = batch.token_ids, batch.logprobs
                for at in range(0, len(ids), size) or (0,):
                    end = at + size
                    finish = batch.finish if end >= len(ids) else Finish.NONE
                    waiting.append(TokenBatch(ids[at:end], finish, logprobs[at:end] if logprobs else None))
            return waiting.pop(0)

        monkeypatch.setattr(TokenStream, "__anext__", next_batch)

    return limit


async def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The `data:` documents of a stream, without [DONE], which must be the last."""
    lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]"
    return [msgspec.json.decode(line[6:]) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What the deltas of a choice come to."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices
    )
