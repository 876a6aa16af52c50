"""What /v1/completions answers: continuations, whole or streamed. With `echo` each begins with its prompt."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from ..answer import Piece, TokenEntry
from ..service import Service
from ..streams import Choice, Generation, Usage
from .events import NULL_FINISH, ChunkFrame, token_ids_member
from .extras import Extras, or_unset
from .logprobs import CompletionLogprobs, PromptLogprobsBody, completion_logprobs
from .usage import UsageBody, usage_body


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobsBody | UnsetType = UNSET


class CompletionResponse(Struct, frozen=True, tag_field="object", tag="text_completion"):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class CompletionEvents:
    """One response's id and shapes."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        model: str,
        response_id: str,
        *,
        width: int | None,
        echo: bool,
        skip_special: bool,
        extras: Extras,
        num_kept: int,
        num_made: int,
    ) -> None:
        """`width`: likeliest tokens beside the chosen one in log-probabilities; None: none are wanted.

        `skip_special`: special tokens of a prompt given as ids are left out of its text. Of the `num_made`
        answers to a prompt the `num_kept` likeliest are given.
        """
        self._service = service
        self._generation = generation
        self._model = model
        self._echo = echo
        self._width = width
        self._skip_special = skip_special
        self._extras = extras
        self._num_kept, self._num_made = num_kept, num_made
        self.plain = not extras.token_ids
        self._id = f"cmpl-{response_id}"
        self._created = service.now()
        self._frame = ChunkFrame(self._id, "text_completion", self._created, model)

    def opening(self, choice: Choice, usage: Usage | None) -> bytes:
        ids = self._extras.prompt_token_ids(choice)
        if not self._echo:
            return b"" if ids is None else self._event(choice, "", None, None, usage, [], ids)
        text, entries = self._prompt(choice)
        told: list[int] | None = None if ids is None else []
        return self._event(choice, text, self._logprobs(entries, 0), None, usage, told, ids)

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        before = self._frame.head + b'{"index":%d,"text":' % choice.index
        return before, b',"logprobs":null,' + NULL_FINISH + self._frame.tail(None)

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        offset = len(self._prompt_text(choice)) if self._echo and piece.entries else 0
        logprobs = self._logprobs(piece.entries, offset) if piece.entries else None
        new = self._extras.new_token_ids(choice)
        return self._event(choice, piece.text, logprobs, piece.finish_reason, usage, new)

    def joined(self, choice: Choice, piece: Piece, usage: Usage | None, *, first: bool) -> bytes:
        if not first:
            return self.full(choice, piece, usage)
        text, entries = self._prompt(choice) if self._echo else ("", [])
        logprobs = self._logprobs([*entries, *_shifted(piece.entries, len(text))], 0)
        new, ids = self._extras.new_token_ids(choice), self._extras.prompt_token_ids(choice)
        return self._event(choice, text + piece.text, logprobs, piece.finish_reason, usage, new, ids)

    def usage(self, usage: Usage) -> bytes:
        return self._frame.usage(usage)

    async def whole(self) -> CompletionResponse:
        """The response when everything has come."""
        choices: list[CompletionChoice] = []

        async def collect(choice: Choice) -> None:
            pieces = [piece async for piece in choice]
            text, entries = self._prompt(choice) if self._echo else ("", [])
            own = [entry for piece in pieces for entry in piece.entries]
            if self._echo and choice.ending is not None:  # lm-eval counts on an entry for every token made
                own.append(choice.ending)
            shifted = _shifted(own, len(text))
            choices.append(
                CompletionChoice(
                    choice.index,
                    text + "".join(piece.text for piece in pieces),
                    self._logprobs([*entries, *shifted], 0),
                    choice.finish_reason or "stop",
                    or_unset(self._extras.new_token_ids(choice)),
                    or_unset(self._extras.prompt_token_ids(choice)),
                    self._extras.prompt_logprobs(choice),
                )
            )

        await self._generation.run(collect)
        choices.sort(key=lambda choice: choice.index)
        if self._num_kept < self._num_made:
            choices = self._likeliest(choices)
        usage = usage_body(self._generation.usage())
        return CompletionResponse(self._id, self._created, self._model, choices, usage)

    def _likeliest(self, choices: list[CompletionChoice]) -> list[CompletionChoice]:
        """Of each prompt those with the highest log-probability per token, best first."""
        kept: list[CompletionChoice] = []
        made = self._generation.choices
        for begin in range(0, len(choices), self._num_made):
            group = choices[begin : begin + self._num_made]
            group.sort(key=lambda choice: -made[choice.index].mean_logprob)
            kept += group[: self._num_kept]
        return [structs.replace(choice, index=index) for index, choice in enumerate(kept)]

    def _event(
        self,
        choice: Choice,
        text: str,
        logprobs: CompletionLogprobs | None,
        finish_reason: str | None,
        usage: Usage | None,
        token_ids: list[int] | None = None,
        prompt_token_ids: list[int] | None = None,
    ) -> bytes:
        ids = token_ids_member(token_ids) + token_ids_member(prompt_token_ids, "prompt_token_ids")
        before = self._frame.head + b"{" + ids + b'"index":%d,"text":' % choice.index
        middle = b',"logprobs":' + msgspec.json.encode(logprobs) + b',"finish_reason":'
        end = msgspec.json.encode(finish_reason) + b"}" + self._frame.tail(usage)
        return before + msgspec.json.encode(text) + middle + end

    def _prompt_text(self, choice: Choice) -> str:
        prompt = choice.prompt
        if prompt.text is not None:
            return prompt.text
        return self._service.tokenizer.decode(prompt.token_ids, skip_special_tokens=self._skip_special)

    def _prompt(self, choice: Choice) -> tuple[str, list[TokenEntry]]:
        """Its text, and the entries of its tokens when log-probabilities were asked for."""
        text = self._prompt_text(choice)
        if self._width is None:
            return text, []
        detokenizer = self._service.tokenizer.detokenizer(skip_special_tokens=self._skip_special)
        entries, offset = [], 0
        for position, token_id in enumerate(choice.prompt.token_ids):
            entries.append(TokenEntry(token_id, offset, choice.stream.prompt_logprobs.get(position)))
            offset += len(detokenizer.push((token_id,)))
        return text, entries

    def _logprobs(self, entries: Sequence[TokenEntry], offset: int) -> CompletionLogprobs | None:
        if self._width is None:
            return None
        return completion_logprobs(entries, self._width, self._extras.vocabulary, offset=offset)


def _shifted(entries: Sequence[TokenEntry], offset: int) -> list[TokenEntry]:
    """Of an answer, in a text that begins with the prompt."""
    return [TokenEntry(entry.token_id, entry.offset + offset, entry.logprob) for entry in entries]
