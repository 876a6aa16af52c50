"""Fields of both generating endpoints that OpenAI lacks: what reaches the engine core, what comes back."""

from collections.abc import Callable
from typing import Any, cast

import httpx2
import pytest

from frontend import streams
from frontend.answer import Answer
from frontend.metrics import Metrics, Stopwatch
from frontend.streams import Choice, Prompt
from frontend.tokenizer import Tokenizer
from protocol import columns
from protocol.messages import Finish
from protocol.stream import Parting, TokenBatch, TokenLogprob, TokenStream
from tests.frontend.conftest import BOS, END, events, text_of
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BOTH = pytest.mark.parametrize("url", [CHAT, TEXT])


def request_of(**fields: Any) -> dict[str, Any]:
    """For either endpoint."""
    return {"messages": [{"role": "user", "content": "Terns fly"}], "prompt": "Terns fly", **fields}


async def ask(http: httpx2.AsyncClient, url: str, **fields: Any) -> dict[str, Any]:
    response = await http.post(url, json=request_of(**fields))
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(live: httpx2.AsyncClient, url: str, **fields: Any) -> list[dict[str, Any]]:
    async with live.stream("POST", url, json=request_of(**fields, stream=True)) as response:
        return await events(response)


def prompt_of(engine: FakeEngine) -> list[int]:
    return list(columns.unpack_ids(engine.submits[-1].prompt_token_ids))


@BOTH
async def test_allowed_tokens(http: httpx2.AsyncClient, engine: FakeEngine, url: str) -> None:
    engine.answer = [50]
    await ask(http, url, allowed_token_ids=[9, 7, 9])
    assert engine.submits[0].sampling.allowed_token_ids == (9, 7)


@BOTH
async def test_bad_words_at_a_beginning_and_within(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer = [50]
    await ask(http, url, bad_words=["tern", " tern", "🐦"])
    expected = [tuple(ids(text)) for text in ("tern", " tern", "🐦", " 🐦")]
    assert engine.submits[0].sampling.bad_words == tuple(expected)


@BOTH
@pytest.mark.parametrize(("most", "left"), [(3, 3), (-1, 118), (1000, 0)])
async def test_a_prompt_is_cut_to_its_end(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str, most: int, left: int
) -> None:
    engine.answer = [50]
    text = "tern " * (10 if most > 0 else 70)
    messages = [{"role": "user", "content": text}]
    whole = [BOS, *ids(text)] if url == TEXT else ids(f"<|bos|><|user|>{text}<|end|><|assistant|>")
    fields = {"messages": messages, "prompt": text, "max_tokens": 10, "truncate_prompt_tokens": most}
    body = await ask(http, url, **fields)
    assert prompt_of(engine) == whole[-left:]
    assert body["usage"]["prompt_tokens"] == len(whole[-left:])


async def test_the_echo_of_a_prompt_that_was_cut(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, text = ids("!"), "from pole to pole"
    body = await ask(http, TEXT, prompt=text, echo=True, truncate_prompt_tokens=2)
    assert prompt_of(engine) == ids(text)[-2:]
    echoed = body["choices"][0]["text"]
    assert f"{text}!".endswith(echoed)
    assert 1 < len(echoed) < len(text)


@BOTH
async def test_log_probabilities_of_the_prompt(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer = [50]
    body = await ask(http, url, prompt_logprobs=1, n=2)
    found = body["prompt_logprobs"] if url == CHAT else body["choices"][1]["prompt_logprobs"]
    prompt = prompt_of(engine)
    assert found[0] is None
    assert len(found) == len(prompt)
    for token, entry in zip(prompt[1:], found[1:], strict=True):
        assert entry == {
            str(token): {
                "logprob": pytest.approx(-token / 1000),
                "rank": 1,
                "decoded_token": entry[str(token)]["decoded_token"],
            }
        }
    names = [next(iter(entry.values()))["decoded_token"] for entry in found[1:]]
    assert "Terns fly" in "".join(names)
    assert engine.submits[0].sampling.prompt_logprobs == 1


@BOTH
async def test_ids_of_prompt_and_answer(
    http: httpx2.AsyncClient, live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer, engine.finish = [*ids("From 🐦 to pole"), END], Finish.STOP
    body = await ask(http, url, return_token_ids=True, max_tokens=100, stop=["pole"])
    choice = body["choices"][0]
    assert choice["token_ids"] == engine.answer[:-1]
    assert (body if url == CHAT else choice)["prompt_token_ids"] == prompt_of(engine)
    chunks = await stream(live, url, return_token_ids=True, max_tokens=100, n=2)
    assert text_of(chunks, 1) == "From 🐦 to pole"
    for index in (0, 1):
        of_choice = [c for c in chunks if c["choices"][0]["index"] == index]
        token_ids = [one for c in of_choice for one in c["choices"][0].get("token_ids", ())]
        assert token_ids == engine.answer, "those of an unfinished character and of the end, too"
        told = [(c if url == CHAT else c["choices"][0]).get("prompt_token_ids") for c in of_choice]
        assert told == [prompt_of(engine), *[None] * (len(told) - 1)]


@BOTH
async def test_ids_in_a_stream_that_is_taken_up_again(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer, engine.finish = [*ids("From pole"), END], Finish.STOP
    told = []
    for last in ("0", "2"):
        request = request_of(return_token_ids=True, stream=True, max_tokens=100)
        headers = {"Idempotency-Key": "k", "Last-Event-ID": last}
        async with live.stream("POST", url, json=request, headers=headers) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
        chunks = [httpx2.Response(200, text=line[6:]).json() for line in lines]
        told.append([one for c in chunks for one in c["choices"][0]["token_ids"]])
    assert told == [engine.answer, engine.answer[2:]]


@BOTH
async def test_tokens_named_by_their_ids(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer = ids(" b")
    logprobs = True if url == CHAT else 0
    body = await ask(http, url, logprobs=logprobs, return_tokens_as_token_ids=True)
    found = body["choices"][0]["logprobs"]
    names = found["tokens"] if url == TEXT else [one["token"] for one in found["content"]]
    assert names == [f"token_id:{token}" for token in engine.answer]


class OneByOne:
    """A token stream to whose reader nothing comes together."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids: list[int] = []
        self._rest = list(token_ids)

    async def __anext__(self) -> TokenBatch:
        token = self._rest.pop(0)
        self.token_ids.append(token)
        logprob = [TokenLogprob(-float(token), ())]
        return TokenBatch([token], Finish.NONE if self._rest else Finish.LENGTH, logprob)

    def close(self, parting: Parting) -> None:
        pass


@pytest.mark.parametrize(
    ("interval", "sizes"), [(1, [1] * 11), (4, [1, 4, 4, 2]), (10, [1, 10]), (99, [1, 10])]
)
async def test_pieces_that_wait_for_several_tokens(
    tokenizer: Tokenizer, ids: Ids, interval: int, sizes: list[int]
) -> None:
    token_ids = ids("x") * 11
    stream = cast(TokenStream, OneByOne(token_ids))
    answer = Answer(tokenizer.detokenizer(skip_special_tokens=True), None, logprobs=True)
    choice = Choice(0, Prompt([1]), stream, answer, Stopwatch(Metrics()), interval)
    pieces, told = [], []
    async for piece in choice:
        pieces.append(piece)
        told.append(choice.new_token_ids())
    assert "".join(piece.text for piece in pieces) == "xxxxxxxxxxx"
    assert [len(piece.entries) for piece in pieces] == [len(one) for one in told] == sizes
    assert choice.mean_logprob == pytest.approx(-sum(token_ids) / 11)


async def test_the_interval_is_the_requests(
    http: httpx2.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answer, intervals = [50], []

    def choice(*arguments: Any) -> Choice:
        intervals.append(arguments[-1])
        return Choice(*arguments)

    monkeypatch.setattr(streams, "Choice", choice)
    await ask(http, TEXT, stream_interval=7)
    await ask(http, TEXT)
    assert intervals == [7, 1]


async def test_the_best_of_several(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    """Log-probability of token t is -t / 1000 here, and choice i gets its own answer."""
    answers = [ids("the"), ids("zz"), [5], [300, 301]]
    engine.answers = dict(enumerate(answers, 3))
    body = await ask(http, TEXT, best_of=4, n=2, seed=3, return_token_ids=True)
    by_score = sorted(answers, key=lambda answer: sum(answer) / len(answer))
    assert [choice["token_ids"] for choice in body["choices"]] == by_score[:2]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == sum(map(len, answers)), "all that were made"


@BOTH
async def test_log_probabilities_of_certain_tokens(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, url: str
) -> None:
    engine.answer = ids("x")
    logprobs = {"logprobs": True} if url == CHAT else {"logprobs": 0}
    body = await ask(http, url, logprob_token_ids=[60, 61, 62], **logprobs)
    found = body["choices"][0]["logprobs"]
    assert engine.submits[0].sampling.logprob_token_ids == (60, 61, 62)
    shown = found["top_logprobs"][0] if url == TEXT else found["content"][0]["top_logprobs"]
    assert len(shown) == 3 + (url == TEXT), "with the token itself, in completions"


@BOTH
@pytest.mark.parametrize("n", [1, 3])
async def test_cached_tokens_count_once(
    http: httpx2.AsyncClient, live: httpx2.AsyncClient, engine: FakeEngine, url: str, n: int
) -> None:
    engine.answer, engine.num_cached = [50, 51], 3
    whole = (await ask(http, url, n=n))["usage"]
    usage = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(live, url, n=n, stream_options=usage)
    for found in (whole, chunks[-1]["usage"], chunks[-2]["usage"]):
        assert found["prompt_tokens_details"] == {"cached_tokens": 3}
        assert found["prompt_tokens"] == len(prompt_of(engine))
        assert found["completion_tokens"] == 2 * n
