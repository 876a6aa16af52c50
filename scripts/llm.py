"""LLM: a model for scripts and notebooks, through a stack of its own. Needs no running server.

    with LLM("path/to/checkpoint") as llm:
        for answer in llm.generate(["Once upon a time", "The tern is"], max_tokens=32):
            print(answer.text)

It starts the processes that `tern serve` starts, on a socket in a private folder. Any of them may be
killed: what was under way is asked again. They end with `close`, and with this process.
"""

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct, structs

from protocol.errors import BY_CODE, InternalError, InvalidRequest, StartupError
from protocol.options import ServeOptions

from .api_client import ApiClient, Reply
from .asking import Asker, Question
from .local_server import LocalServer
from .model_path import resolve
from .options import build, declared_options, did_you_mean

Prompt = str | list[int]
Message = dict[str, Any]
"""{"role": "user", "content": "…"}, and whatever else the API takes."""


class Completion(Struct, frozen=True):
    """The answer to one prompt or conversation."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int
    """Of the answer; of all answers with `n`."""
    texts: tuple[str, ...]
    """`n` of them; the first is `text`."""
    document: dict[str, Any]
    """All that the API answered: log-probabilities, tool calls, …"""


class LLM:
    """Use it in `with`, or call `close`. To be made by a thread that lives as long as it is used."""

    def __init__(self, model: str = "", *, concurrency: int = 0, **options: Any) -> None:
        """`model`: a checkpoint's folder or hub id; empty: the bundled one. `options` are those of
        `tern serve`, with its names and units: `max_model_len="8k"`, `quantization="int8"`.
        `concurrency` prompts are under way at once; 0: `max_num_seqs`.

        Returns when the model is ready. Raises StartupError, which says what to change.
        """
        serve = _serve_options({"model": model, **options})
        serve = structs.replace(serve, model=resolve(serve.model, os.environ))
        self._server = LocalServer(serve)
        try:
            self._server.wait_until_ready()
        except BaseException:
            self._server.close()
            raise
        self._asker = Asker(
            lambda: ApiClient(self._server.url, timeout_s=None),
            concurrency or serve.scheduler.max_num_seqs,
            lambda _: self._server.check(),
        )

    def generate(self, prompts: Prompt | Sequence[Prompt], **params: Any) -> list[Completion]:
        """Complete texts, or lists of token ids; in the order of the prompts. `params` are fields of
        /v1/completions: max_tokens, temperature, seed, stop, structured_outputs, …

        Raises InvalidRequest and its relatives (protocol/errors.py) for the first prompt that is refused.
        """
        texts: Sequence[Any] = [prompts] if isinstance(prompts, str) or _is_ids(prompts) else prompts
        return self._ask("/v1/completions", ({"prompt": text, **params} for text in texts))

    def chat(
        self, conversations: Sequence[Message] | Sequence[Sequence[Message]], **params: Any
    ) -> list[Completion]:
        """Answer one conversation, or several; `params` are fields of /v1/chat/completions."""
        several = conversations and not isinstance(conversations[0], dict)
        all_of_them = conversations if several else [conversations]
        return self._ask("/v1/chat/completions", ({"messages": one, **params} for one in all_of_them))

    def embed(self, texts: str | Sequence[str], **params: Any) -> list[list[float]]:
        """Vectors of length 1; `params` are fields of /v1/embeddings."""
        given = [texts] if isinstance(texts, str) else texts
        questions = (Question("/v1/embeddings", {"input": text, **params}) for text in given)
        return [_document(reply)["data"][0]["embedding"] for reply in self._asker.ask(questions)]

    def close(self) -> None:
        """Stop the processes; what is under way is aborted."""
        self._asker.close()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, path: str, bodies: Iterable[dict[str, Any]]) -> list[Completion]:
        questions = (Question(path, _checked(body)) for body in bodies)
        return [_completion(_document(reply)) for reply in self._asker.ask(questions)]


def _serve_options(given: dict[str, Any]) -> ServeOptions:
    """Raises StartupError for a name or value that makes no sense."""
    options = {option.name: option for option in declared_options()}
    for name in given:
        if name not in options:
            raise StartupError(
                f"LLM takes no {name}{did_you_mean(name, options)}", hint="see tern serve --help"
            )
    values = {
        name: options[name].read(list(value) if isinstance(value, tuple) else value, f"{name} =")
        for name, value in given.items()
    }
    return build(ServeOptions, values)


def _is_ids(prompts: Prompt | Sequence[Prompt]) -> bool:
    return len(prompts) > 0 and all(isinstance(token, int) for token in prompts)


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("stream"):
        raise InvalidRequest("LLM gives whole answers; for streams, use an OpenAI client", param="stream")
    return body


def _document(reply: Reply) -> dict[str, Any]:
    """Raises the server's error."""
    document: dict[str, Any] = msgspec.json.decode(reply.body)
    if reply.status != 200:
        error = document["error"]
        raise BY_CODE.get(error["code"], InternalError)(error["message"], param=error["param"])
    return document


def _completion(document: dict[str, Any]) -> Completion:
    choices, usage = document["choices"], document["usage"]
    texts = tuple(one["text"] if "text" in one else one["message"]["content"] or "" for one in choices)
    return Completion(
        text=texts[0],
        finish_reason=choices[0]["finish_reason"],
        num_prompt_tokens=usage["prompt_tokens"],
        num_tokens=usage["completion_tokens"],
        texts=texts,
        document=document,
    )
