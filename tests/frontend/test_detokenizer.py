"""The deltas come to the decoding of all ids at once, and no character is ever split."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from frontend.detokenizer import Detokenizer
from frontend.tokenizer import Tokenizer
from tests.frontend.conftest import SPECIAL, train_byte_level

_ADDED = ["<tool_call>", "｜begin of▁sentence｜"]


def byte_level(folder: Path) -> Tokenizer:
    backend = train_byte_level()
    backend.add_tokens(_ADDED)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def byte_fallback(folder: Path) -> Tokenizer:
    """As Llama 2 and Gemma: spaces as ▁, bytes as <0xNN>, the first space dropped."""
    words = ["▁", "▁the", "▁tern", "s", "▁fl", "y", "é", "日本", "▁🐦"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    make = {"byte level": byte_level, "byte fallback": byte_fallback}
    return {name: build(tmp_path_factory.mktemp("tokenizer")) for name, build in make.items()}


def batched(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Ids in batches of the given sizes, and the rest one by one."""
    batches = []
    for size in sizes:
        batches.append(ids[:size])
        ids = ids[size:]
    return [batch for batch in [*batches, *([one] for one in ids)] if batch]


def deltas(detokenizer: Detokenizer, batches: list[list[int]]) -> list[str]:
    return [*(detokenizer.push(batch) for batch in batches), detokenizer.flush()]


@settings(deadline=None, max_examples=300)
@given(data=st.data(), skip=st.booleans(), sizes=st.lists(st.integers(1, 5), max_size=6))
def test_any_ids_of_a_byte_level_vocabulary(
    tokenizers_by_name: dict[str, Tokenizer], data: st.DataObject, skip: bool, sizes: list[int]
) -> None:
    tokenizer = tokenizers_by_name["byte level"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    pieces = deltas(tokenizer.detokenizer(skip_special_tokens=skip), batched(ids, sizes))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(
        st.sampled_from([" ", "é", "日本語", "🐦", "👩‍👩‍👧", "the tern flies", "<|end|>", "\n", "한"])
    ),
    sizes=st.lists(st.integers(1, 5), max_size=6),
)
@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_texts_come_back_whole(
    tokenizers_by_name: dict[str, Tokenizer], name: str, texts: list[str], sizes: list[int]
) -> None:
    tokenizer = tokenizers_by_name[name]
    ids = tokenizer.encode_now(["".join(texts)], add_special_tokens=False)[0]
    pieces = deltas(tokenizer.detokenizer(skip_special_tokens=True), batched(ids, sizes))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_special_token_between_words(tokenizers_by_name: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_name["byte fallback"]
    the, tern = tokenizer.encode_now(["the", "tern"], add_special_tokens=False)
    ids = [*the, 2, *tern]
    pieces = deltas(tokenizer.detokenizer(skip_special_tokens=True), [[one] for one in ids])
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_some_special_tokens_may_be_shown(tokenizers_by_name: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers_by_name[name]
    the, tern = tokenizer.encode_now(["the", "tern"], add_special_tokens=False)
    shown, hidden = 2, 1
    detokenizer = tokenizer.detokenizer(skip_special_tokens=True, shown=frozenset({shown}))
    pieces = deltas(detokenizer, [[one] for one in [hidden, *the, shown, hidden, *tern]])
    assert "".join(pieces) == tokenizer.decode([*the, shown, *tern], skip_special_tokens=False)
    assert tokenizer.decode([shown], skip_special_tokens=False) in "".join(pieces)
    others = deltas(tokenizer.detokenizer(skip_special_tokens=True), [[*the, shown]])
    assert "".join(others) == tokenizer.decode(the, skip_special_tokens=True)


def test_added_tokens_are_known_by_their_text(tokenizers_by_name: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_name["byte level"]
    assert tokenizer.token_id("<|end|>") == 2
    assert tokenizer.token_strings([tokenizer.token_id("<tool_call>") or 0]) == ["<tool_call>"]
    assert tokenizer.token_id("the") is None


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_a_character_appears_with_its_last_byte(tokenizers_by_name: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers_by_name[name]
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i >= len(SPECIAL)}
    ids = [by_bytes[bytes([byte])] for byte in "🐦".encode()]
    detokenizer = tokenizer.detokenizer(skip_special_tokens=True)
    assert [detokenizer.push([one]) for one in ids] == ["", "", "", "🐦"]
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_an_unfinished_character_shows_at_the_end(
    tokenizers_by_name: dict[str, Tokenizer], name: str
) -> None:
    tokenizer = tokenizers_by_name[name]
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i >= len(SPECIAL)}
    ids = [by_bytes[b"\xf0"], by_bytes[b"\x9f"]]
    pieces = deltas(tokenizer.detokenizer(skip_special_tokens=True), [ids])
    assert pieces[0] == ""
    assert pieces[1] == tokenizer.decode(ids, skip_special_tokens=True) != ""


def test_endless_invalid_bytes_are_let_go(tokenizers_by_name: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_name["byte fallback"]
    detokenizer = tokenizer.detokenizer(skip_special_tokens=True)
    invalid = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xff")
    shown = [detokenizer.push([invalid]) for _ in range(50)]
    assert "".join(shown).count("\ufffd") > 30
