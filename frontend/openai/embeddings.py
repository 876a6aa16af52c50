"""POST /v1/embeddings: texts or lists of ids in, one vector each out, all of length 1.

Which hidden states a vector is made of is the model's own business (worker/pooling.py). `dimensions` keeps
the first ones and brings what is left back to length 1, as models trained for that (Matryoshka) expect.
"""

import asyncio
import base64
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import msgspec
from msgspec import Meta, Raw, Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest, TernError, Unsupported
from protocol.messages import EngineFacts
from protocol.sampling import MAX_TOKENS

from ..metrics import Stopwatch
from ..responses import send_json
from ..service import Service
from ..streams import Prompt
from .fields import check_embedded
from .headers import Terms, read_terms
from .parse import parse, read_body
from .prompting import check_not_empty, encode_texts, texts_or_ids, truncated
from .refused import EMBEDDINGS, Refusals

MAX_INPUTS = 2048
"""As OpenAI allows."""
MOST_AT_ONCE = 64
"""Of one request's inputs in the engine core: others have their turn between them."""


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """null and absent mean the same everywhere."""

    model: str | None = None
    input: str | list[str | int | Annotated[list[int], Meta(min_length=1)]] | None = None
    """A text, several, the ids of one, or the ids of several."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    """Only the last so many tokens of each input are read; -1: as many as fit."""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None


class Embedding(Struct, frozen=True):
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32s"""
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Struct, frozen=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Embeddings:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(EmbeddingRequest)
        self._refusals = Refusals(EMBEDDINGS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = await self._service.door.admit()
        body = await read_body(receive)
        request = parse(self._decoder, body)
        self._refusals.check(body)
        terms = read_terms(scope, body, self._service.options.request_timeout)
        await self._service.door.attend(receive, self._answer(request, facts, terms, send))

    async def _answer(self, request: EmbeddingRequest, facts: EngineFacts, terms: Terms, send: Send) -> None:
        model = self._service.model_name(request.model)
        size = _size(request.dimensions, facts)
        prompts = await self._prompts(request, facts)
        self._service.metrics.prompt_tokens.inc(sum(len(prompt.token_ids) for prompt in prompts))
        data = cast("list[Embedding]", await self._written(prompts, request, terms, size))
        count = sum(len(prompt.token_ids) for prompt in prompts)
        await send_json(send, EmbeddingResponse(data, model, EmbeddingUsage(count, count)))

    async def _prompts(self, request: EmbeddingRequest, facts: EngineFacts) -> Sequence[Prompt]:
        given = request.input
        if given is None or given == []:
            raise InvalidRequest("input: required, but empty or missing", param="input")
        if isinstance(given, str):
            given = [given]
        texts, id_lists = texts_or_ids(given, "input")
        if (count := len(texts) or len(id_lists)) > MAX_INPUTS:
            raise InvalidRequest(f"input: {count} inputs; at most {MAX_INPUTS} at once", param="input")
        if texts:
            special = request.add_special_tokens is not False
            prompts = await encode_texts(
                self._service, texts, facts, add_special_tokens=special, param="input"
            )
        else:
            prompts = [Prompt(one) for one in id_lists]
        check_not_empty(prompts, "input")
        cut = truncated(prompts, request, facts, 1)
        for prompt in cut:
            check_embedded(prompt.token_ids, facts, "input")
        return cut

    async def _written(
        self, prompts: Sequence[Prompt], request: EmbeddingRequest, terms: Terms, size: int
    ) -> list[Raw]:
        """An Embedding as JSON of each prompt, in their order. The first error ends the others.

        Each is written when it has come: all 2048 at once would block the event loop for seconds.
        """
        turn = asyncio.Semaphore(MOST_AT_ONCE)
        write = _base64 if request.encoding_format == "base64" else array.tolist

        async def one(index: int, prompt: Prompt) -> Raw:
            async with turn:
                watch, reason = Stopwatch(self._service.metrics), "abort"
                try:
                    vector = await self._service.client.embed(
                        prompt.token_ids,
                        priority=request.priority or 0,
                        timeout_s=terms.timeout_s,
                        tenant=terms.tenant,
                        cache_salt=request.cache_salt or "",
                        adapter=self._service.adapter(request.model),
                    )
                    reason = "stop"
                    return Raw(msgspec.json.encode(Embedding(index, write(_shortened(vector, size)))))
                except TernError:
                    reason = "error"
                    raise
                finally:
                    watch.stop(0, reason)

        tasks = [asyncio.ensure_future(one(index, prompt)) for index, prompt in enumerate(prompts)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _size(dimensions: int | None, facts: EngineFacts) -> int:
    """How many numbers are wanted. Raises InvalidRequest."""
    if not facts.embedding_size:
        raise Unsupported("this model makes no embeddings", param="model")
    if dimensions is not None and dimensions > facts.embedding_size:
        raise InvalidRequest(
            f"dimensions: {dimensions} is more than the {facts.embedding_size} that this model has",
            param="dimensions",
        )
    return dimensions or facts.embedding_size


def _shortened(vector: "array[float]", size: int) -> "array[float]":
    """Its first numbers, of length 1 again."""
    if size == len(vector):
        return vector
    part = vector[:size]
    length = math.hypot(*part) or 1.0
    return array("f", [number / length for number in part])


def _base64(vector: "array[float]") -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
