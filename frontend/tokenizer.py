"""Tokenizer: text to ids and back, from a checkpoint's tokenizer.json. Knows no chat and no streams.

The file's own post-processor decides about beginning- and end-of-sequence tokens, as in transformers.
Long texts are tokenized in a thread, so that the event loop goes on: with the library's calls for batches, as
`encode` and `decode` hold the GIL.
"""

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tokenizers import Tokenizer as _Backend
from tokenizers import decoders

from protocol.errors import StartupError

from .detokenizer import ByteLevelDetokenizer, Detokenizer, TokenBytes, TokenTexts, WindowDetokenizer

T = TypeVar("T")

INLINE_CHARS = 4096
"""Texts up to here are tokenized at once: about 1 ms, less than a thread costs under load."""
THREADS = 2

SPECIAL_TOKEN_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


class Tokenizer:
    """One model's vocabulary. Raises StartupError when the folder holds none."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise StartupError(
                f"{folder} holds no tokenizer.json",
                hint="convert a slow tokenizer with transformers (AutoTokenizer … save_pretrained), "
                "or name another folder with --tokenizer",
            )
        try:
            self._backend = _Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise StartupError(f"{path} cannot be read: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self.config = read_json(folder / "tokenizer_config.json")
        self.special_tokens = _special_tokens(folder, self.config)
        """Such as bos_token, by name, for chat templates."""
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._byte_level = isinstance(self._backend.decoder, decoders.ByteLevel)
        self._bytes = TokenBytes(self._backend.id_to_token, frozenset(), byte_level=self._byte_level)
        self._texts = TokenTexts(self._bytes)
        self._visible_texts: dict[frozenset[int], TokenTexts] = {}
        """By the special tokens that are shown."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizer")

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Ids of each text. Special tokens written out in one count as such."""
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self.encode_now(texts, add_special_tokens=add_special_tokens)

        def work() -> list[list[int]]:
            batches = (
                self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
                for text in texts  # one at a time: a batch would take all cores
            )
            return [one.ids for (one,) in batches]

        return await self.in_thread(work)

    def encode_now(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """The same, while the event loop stands still: 0.2 µs a character."""
        encode = self._backend.encode
        return [encode(text, add_special_tokens=add_special_tokens).ids for text in texts]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run long work on text beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of some ids, all at once."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    async def decode_long(self, ids: list[int]) -> str:
        """The same, special tokens too, beside the event loop."""
        (text,) = await self.in_thread(lambda: self._backend.decode_batch([ids], skip_special_tokens=False))
        return text

    def detokenizer(self, *, skip_special_tokens: bool, shown: frozenset[int] = frozenset()) -> Detokenizer:
        """A new one, for one answer. `shown`: special tokens that are not skipped with the others."""
        if not self._byte_level:
            hidden = self._special - shown if skip_special_tokens and shown else frozenset()
            skip = skip_special_tokens and not shown
            return WindowDetokenizer(
                functools.partial(self._backend.decode, skip_special_tokens=skip), hidden
            )
        if not skip_special_tokens:
            return ByteLevelDetokenizer(self._texts)
        if (texts := self._visible_texts.get(shown)) is None:
            hidden = self._special - shown
            table = TokenBytes(self._backend.id_to_token, hidden, byte_level=True)
            texts = self._visible_texts[shown] = TokenTexts(table)
        return ByteLevelDetokenizer(texts)

    def token_id(self, text: str) -> int | None:
        """Of a token that is added to the vocabulary, special or not; None: this is none."""
        return self._added.get(text)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for; may be part of a UTF-8 character. Empty for an unknown id."""
        return self._bytes[token_id]

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Names of tokens as the vocabulary spells them."""
        return [self._backend.id_to_token(token_id) or "" for token_id in ids]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none. Raises StartupError when it is malformed."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} cannot be read: {error}") from error
    return content


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """From tokenizer_config.json, and from the older special_tokens_map.json where that is silent."""
    found: dict[str, str] = {}
    for source in (config, read_json(folder / "special_tokens_map.json")):
        for name in SPECIAL_TOKEN_NAMES:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found.setdefault(name, text)
    return found
