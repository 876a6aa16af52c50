"""The real openai library, against this frontend and a scripted engine core."""

from collections.abc import AsyncIterator, Callable

import openai
import pytest

from frontend.service import Service
from protocol.messages import Finish, Refused
from tests.frontend.conftest import END, Serve
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
TEXT = "From pole to pole 🐦 and back."


@pytest.fixture
async def client(service: Service, serve: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    url = await serve(service) + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def bird(engine: FakeEngine, ids: Ids) -> FakeEngine:
    engine.answer, engine.finish = [*ids(TEXT), END], Finish.STOP
    return engine


async def test_chat(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, n=2
    )
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content).startswith("From pole")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


async def test_chat_stream(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    chunks = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    seen = [chunk async for chunk in chunks]
    assert "".join(c.choices[0].delta.content or "" for c in seen if c.choices) == TEXT
    assert seen[0].choices[0].delta.role == "assistant"
    assert seen[-1].usage is not None


async def test_the_stream_helper(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    async with client.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "x"}]
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].finish_reason == "stop"


async def test_completions(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    answer = await client.completions.create(
        model="tiny", prompt=["a", "b"], echo=True, logprobs=1, max_tokens=50
    )
    assert [choice.text for choice in answer.choices] == ["a" + TEXT, "b" + TEXT]
    chunks = await client.completions.create(model="tiny", prompt="x", stream=True, max_tokens=50)
    assert "".join([chunk.choices[0].text async for chunk in chunks]) == TEXT


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny", "org/tiny"]
    assert (await client.models.retrieve("org/tiny")).id == "org/tiny"


async def test_errors_are_the_librarys_own(client: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model="tiny", prompt=[9] * 200)
    assert long.value.code == "context_length_exceeded"
    engine.refuse_next = Refused(0, "overloaded", "full", True)
    with pytest.raises(openai.RateLimitError):
        await client.completions.create(model="tiny", prompt="x")


async def test_a_broken_stream_raises(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    bird.pause_at = 1
    chunks = await client.completions.create(model="tiny", prompt="x", stream=True)
    bird.refuse(bird.submits[0].request_id, "numerical_error", "not finite")
    with pytest.raises(openai.APIError, match="not finite"):
        async for _ in chunks:
            pass
