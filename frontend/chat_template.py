"""ChatTemplate: messages to one prompt text, exactly as transformers renders them. Knows no tokens.

Templates come with checkpoints and are code, so they run in Jinja's sandbox, for a limited time, and see
only plain JSON data. Clients may fill a template's variables; they can never bring one of their own.
"""

import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import InvalidRequest, StartupError

from .tools import short_id

RENDER_TIMEOUT_S = 2.0
"""Most templates take 20 µs a message, but one that loops over all messages for each takes the square."""

Message = dict[str, Any]
"""role and content, and what else a template may read: name, tool_calls, tool_call_id, reasoning_content."""

RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)
_TELLS_NONE = re.compile(r"content['\"]?\]? is none", re.IGNORECASE)
"""Of templates that know a message with calls by its lack of content; most others cannot bear the lack."""
_MARK = "\ue000continue here\ue000 "
"""Stands at the end of the message to continue; its trailing space shows whether the template strips."""


class ChatTemplate:
    """A compiled template. Raises StartupError when it does not compile."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        with_tools: str = "",
        *,
        name: str = "the chat template",
    ) -> None:
        """`with_tools`: another one for requests with tools; empty: it is the same. `name`: for errors."""
        self._environment = _environment()
        self.source = source + with_tools
        try:
            self._template = self._environment.from_string(source)
            self._with_tools = self._environment.from_string(with_tools or source)
            parsed = [self._environment.parse(one) for one in (source, with_tools)]
            self._variables = set[str]().union(*map(jinja2.meta.find_undeclared_variables, parsed))
        except jinja2.TemplateError as error:
            where = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise StartupError(
                f"{name} does not compile: {error.message}{where}",
                hint="correct it, or give another with --chat-template FILE",
            ) from error
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._absent_content = None if _TELLS_NONE.search(self.source) else ""
        self._short_ids = "length != 9" in self.source
        self._reads_parts = self._probe_parts()
        self._reads_arguments = self._probe_arguments()

    @classmethod
    def load(
        cls, override: str, folder: Path, config: Mapping[str, Any], special: Mapping[str, str]
    ) -> Self | None:
        """From the operator's file, chat_template.jinja or tokenizer_config.json; None: there is none."""
        path = Path(override) if override else folder / "chat_template.jinja"
        name = f"--chat-template {override}" if override else f"the chat template {path}"
        try:
            return cls(path.read_text(encoding="utf-8"), special, name=name)
        except FileNotFoundError:
            if override:
                raise StartupError(f"{name}: there is no such file", hint="name a Jinja template") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            hint = "it must be a text file that the server may read"
            raise StartupError(f"{name} cannot be read: {reason}", hint=hint) from error
        source = config.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template", "") for entry in source}
            return cls(named["default"], special, named.get("tool_use", "")) if "default" in named else None
        return cls(source, special) if isinstance(source, str) else None

    def reads(self, variable: str) -> bool:
        """Whether it looks at this variable at all."""
        return variable in self._variables

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        param: str = "messages",
    ) -> str:
        """The prompt. Raises InvalidRequest with what the template says against the messages in `param`."""
        chat = [self._adapt(message) for message in messages]
        if continue_final_message:
            chat[-1] = {**chat[-1], "content": _marked(chat[-1]["content"])}
        self._environment.begin()
        try:
            text = (self._with_tools if tools else self._template).render(
                messages=chat,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **(variables or {})},
            )
        except Exception as error:  # a template is arbitrary code: whatever it raises is about this input
            said = error.message if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise InvalidRequest(
                f"the model's chat template does not accept these messages: {said}", param=param
            ) from error
        return _until_mark(text) if continue_final_message else text

    def _adapt(self, message: Message) -> Message:
        """As this template can read it: many know neither the role `developer` nor lists of parts."""
        role, content = message["role"], message["content"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        if isinstance(content, list) and not self._reads_parts:
            content = "\n".join(part["text"] for part in content)
        reasoning = message.get("reasoning_content")
        extra = {} if reasoning is None else {"thinking": reasoning}
        adapted = {**message, **extra, "role": role, "content": content}
        if message.get("tool_calls"):
            adapted["tool_calls"] = [self._adapt_call(call) for call in message["tool_calls"]]
            adapted["content"] = content or self._absent_content
        if self._short_ids and "tool_call_id" in message:
            adapted["tool_call_id"] = _nine_chars(message["tool_call_id"])
        return adapted

    def _adapt_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if not self._reads_arguments:
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        ids = {"id": _nine_chars(call.get("id", ""))} if self._short_ids else {}
        return {**call, **ids, "function": function}

    def _probe_arguments(self) -> bool:
        """Whether the arguments of a call in the history may be an object; otherwise they are JSON text."""
        function = {"name": "probe", "arguments": {"key": "value"}}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        answer = {"role": "assistant", "content": self._absent_content, "tool_calls": [call]}
        try:
            self._probe([{"role": "user", "content": "x"}, answer])
        except TypeError:  # a text is put together, and this is none
            return False
        except Exception:  # arbitrary code, see render
            return True
        return True

    def _probe(self, messages: Sequence[Message]) -> str:
        self._environment.begin()
        return self._with_tools.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=False,
            **self._special_tokens,
        )

    def _probe_parts(self) -> bool:
        probe = [
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
        ]
        try:
            text = self._probe(probe)
        except Exception:  # arbitrary code, see render
            return False
        return "one" in text and "two" in text and "text" not in text


def _nine_chars(call_id: str) -> str:
    """As Mistral's templates demand. What has nine letters or digits stays as it is."""
    return call_id if re.fullmatch("[A-Za-z0-9]{9}", call_id) else short_id(call_id)


def _marked(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content + _MARK
    if not content:
        raise InvalidRequest(
            "continue_final_message: the last message has no text", param="continue_final_message"
        )
    return [*content[:-1], {**content[-1], "text": content[-1]["text"] + _MARK}]


def _until_mark(text: str) -> str:
    before, mark, after = text.rpartition(_MARK.rstrip())
    if not mark:
        raise InvalidRequest(
            "continue_final_message: the model's chat template does not show the last message in full",
            param="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %} marks, for training, what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - as declared by jinja2

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


class _Deadline(threading.local):
    at = math.inf


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which every look at an attribute or an item is also a look at the clock: 0.1 µs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = _Deadline()

    def begin(self) -> None:
        """What this thread renders now has RENDER_TIMEOUT_S from here on."""
        self._deadline.at = time.monotonic() + RENDER_TIMEOUT_S

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check_time()
        return super().getitem(obj, argument)

    def call(self, *arguments: Any, **named: Any) -> Any:
        self._check_time()
        return super().call(*arguments, **named)

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline.at:
            raise jinja2.TemplateRuntimeError(f"it takes over {RENDER_TIMEOUT_S:g} s; send fewer messages")


def _environment() -> _Environment:
    """Whitespace rules, filters and functions that chat templates are written against."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Without the HTML escapes of Jinja's own filter."""
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
