"""/tokenize and /detokenize, and the tokenizer behind them, which agrees with transformers."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers import AutoTokenizer

from frontend.tokenizer import INLINE_CHARS, Tokenizer
from protocol.errors import StartupError
from tests.frontend.conftest import BOS

Ids = Callable[[str], list[int]]
BUNDLED = Path(__file__).parents[2] / "models" / "tern-mini"
TEXT = 'Terns fly, "naïve": 日本語 🐦\n\n<|end|>def f(x):'


async def post(http: httpx2.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_there_and_back(http: httpx2.AsyncClient, ids: Ids) -> None:
    found = await post(http, "/tokenize", prompt=TEXT, return_token_strs=True)
    assert found["tokens"] == [BOS, *ids(TEXT)]
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 128
    assert (await post(http, "/detokenize", tokens=found["tokens"]))["prompt"] == "<|bos|>" + TEXT


async def test_without_special_tokens(http: httpx2.AsyncClient, ids: Ids) -> None:
    found = await post(http, "/tokenize", prompt="x", add_special_tokens=False)
    assert found == {"count": 1, "max_model_len": 128, "tokens": ids("x")}


async def test_messages(http: httpx2.AsyncClient, ids: Ids) -> None:
    messages = [{"role": "user", "content": "hi"}]
    found = await post(http, "/tokenize", messages=messages, add_generation_prompt=False)
    assert found["tokens"] == ids("<|bos|><|user|>hi<|end|>")


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}])
async def test_either_a_prompt_or_messages(http: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    assert (await http.post("/tokenize", json=body)).status_code == 400


@pytest.mark.parametrize("tokens", [[100_000], [-1], ["a"], None])
async def test_ids_that_are_none(http: httpx2.AsyncClient, tokens: Any) -> None:
    assert (await http.post("/detokenize", json={"tokens": tokens})).status_code == 400


async def test_the_event_loop_goes_on_under_a_long_text(tokenizer: Tokenizer, ids: Ids) -> None:
    text = "terns " * INLINE_CHARS
    task = asyncio.ensure_future(tokenizer.encode([text], add_special_tokens=False))
    await asyncio.sleep(0)
    assert not task.done()
    assert await task == [ids(text)]


@pytest.mark.parametrize("folder", ["bundled", "tiny"])
@pytest.mark.parametrize("special", [True, False])
async def test_the_same_as_transformers(model_folder: Path, folder: str, special: bool) -> None:
    path = BUNDLED if folder == "bundled" else model_folder
    reference, ours = AutoTokenizer.from_pretrained(path), Tokenizer(path)
    expected = reference(TEXT, add_special_tokens=special)["input_ids"]
    assert await ours.encode([TEXT], add_special_tokens=special) == [expected]
    assert ours.special_tokens == reference.special_tokens_map
    for skip in (True, False):
        decoded = ours.detokenizer(skip_special_tokens=skip)
        text = decoded.push(expected) + decoded.flush()
        assert text == reference.decode(expected, skip_special_tokens=skip)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match="cannot be read"):
        Tokenizer(tmp_path)


@pytest.fixture
def polite_threads() -> Iterator[None]:
    """None takes the GIL from another: it gets it when that one lets it go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


async def test_the_event_loop_goes_on_beside_long_texts(
    polite_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library must not hold the GIL meanwhile: turns of the loop are counted within each call."""
    tokenizer = Tokenizer(BUNDLED)
    library, turns = tokenizer._backend, 0

    class Watched:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                before = turns
                outcome = getattr(library, name)(*arguments, **named)
                assert turns > before, f"{name} stopped the event loop"
                return outcome

            return call

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(tokenizer, "_backend", Watched())
    turning = asyncio.ensure_future(turn())
    (ids,) = await tokenizer.encode([TEXT * 4_000], add_special_tokens=False)
    assert await tokenizer.decode_long(ids) == TEXT * 4_000
    turning.cancel()
