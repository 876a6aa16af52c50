"""Reading: how the answers of one request are read into parts, and what they have to follow to be readable.

    the model's formats ─┐              ┌─▶ a Reader per answer (parts.py)
    ToolUse (tools.py) ──┼─▶ Reading ───┼─▶ special tokens that belong to the text
    the prompt's end ────┘              └─▶ a constraint: calls that must come, or must be valid if they come

`plan_reading` makes it for any endpoint; an endpoint puts it into its Wish.
"""

from typing import NamedTuple

import msgspec
from msgspec import Struct

from protocol.errors import InvalidRequest, Unsupported
from protocol.frontend_options import FrontendOptions

from .chat_template import ChatTemplate
from .grammar_messages import Frame, Inner, ToolArguments
from .grammars import Constraint
from .parts import Reader
from .reasoning import MARKS, Begins, Marks, PlainReader, ReasoningReader, before_answer, begins, marks_of
from .tokenizer import Tokenizer
from .tool_formats.formats import FALLBACK, format_named, format_of
from .tool_formats.tool_format import (
    CallGrammar,
    FramingFormat,
    ToolFormat,
    UnenforceableTool,
    literal,
)
from .tools import CallIds, Tool, ToolUse

ANY_ARGUMENTS = {"type": "object"}
FREE_TEXT = r"/(.|\n)+/"


class Formats(Struct, frozen=True):
    """How one model calls tools and reasons; None: not at all, as far as is known."""

    tools: ToolFormat | None
    reasoning: Marks | None
    framing: FramingFormat | None
    """The same as `tools`, if it frames whole answers."""
    told: bool
    """The chat template tells the model of tools."""
    token_ids: dict[str, int]
    """Of those marks that are one token each."""

    @classmethod
    def of(cls, template: ChatTemplate | None, tokenizer: Tokenizer, options: FrontendOptions) -> "Formats":
        """As the options say, or as the chat template shows."""
        source = template.source if template is not None else ""
        tools: ToolFormat | None = None
        if options.tool_call_parser == "auto":
            tools = format_of(source)
        elif options.tool_call_parser != "none":
            tools = format_named(options.tool_call_parser, source)
        framing = tools if isinstance(tools, FramingFormat) else None
        parser = options.reasoning_parser
        reasoning = marks_of(source) if parser == "auto" and framing is None else MARKS.get(parser)
        marks = [*(tools.marks if tools is not None else ()), *FALLBACK.marks]
        marks += [reasoning.open, reasoning.close] if reasoning is not None else []
        known = {mark: tokenizer.token_id(mark) for mark in marks}
        told = template is not None and template.reads("tools")
        return cls(
            tools, reasoning, framing, told, {mark: one for mark, one in known.items() if one is not None}
        )

    def can_end_reasoning(self, begin: Begins) -> bool:
        """Whether a grammar can make an answer that begins so go on from its reasoning; or there is none."""
        if self.framing is not None:
            return self.framing.thought_end in self.token_ids
        return begin is Begins.NEVER or (
            self.reasoning is not None and self.reasoning.close in self.token_ids
        )

    def lark(self, mark: str) -> str:
        """A mark in a grammar."""
        token_id = self.token_ids.get(mark)
        return literal(mark) if token_id is None else f"<[{token_id}]>"


class Budget(NamedTuple):
    """So many tokens of reasoning at most; `param` asks for it."""

    num_tokens: int
    param: str


def plan_reading(
    formats: Formats,
    use: ToolUse,
    prompt: str,
    response_id: str,
    *,
    split_reasoning: bool = True,
    show_reasoning: bool = True,
    going_on: str | None = None,
    budget: "Budget | None" = None,
    param: str = "tools",
) -> "Reading | None":
    """None: the answers are plain text. `prompt` is what they go on from. Raises InvalidRequest for `param`.

    `going_on`: the text of the last message, if the answers go on with it. `budget`: where the reasoning is
    cut, and the answer goes on.

    `split_reasoning`: off, it stays in the text. `show_reasoning`: off, it is dropped. Ids of calls follow
    from `response_id`. Calls that are forced can be had of any model; for calls of its own accord it has to
    be told of tools, in a format that is known.
    """
    remedy = "force calls (tool_choice: required, or a named tool), which works with any model"
    if use.callable and use.choice == "auto" and not formats.told:
        what = "the model's chat template has no place for tools, so it would not learn of them"
        raise InvalidRequest(f"{param}: {what}; {remedy}", param=param)
    if use.callable and use.choice == "auto" and formats.tools is None:
        what = "it is not known how this model writes calls"
        raise InvalidRequest(f"{param}: {what}; serve it with --tool-call-parser, or {remedy}", param=param)
    begin = Begins.NEVER
    if formats.framing is not None and not split_reasoning:
        what = "this model writes in channels, of which only text and reasoning can be told apart"
        raise InvalidRequest(f"separate_reasoning: {what}; use include_reasoning", param="separate_reasoning")
    if formats.framing is None and formats.reasoning is not None and split_reasoning:
        begin = begins(formats.reasoning, prompt, going_on)
    if not use.callable and begin is Begins.NEVER and formats.framing is None:
        return None
    if budget is not None and not formats.can_end_reasoning(begin):
        what = (
            f"{budget.param}: it cannot be enforced, as the mark that ends this model's reasoning is no token"
        )
        raise Unsupported(f"{what}; leave it out", param=budget.param)
    return Reading(formats, use, begin, response_id, show_reasoning, going_on is not None, budget, param)


class Reading:
    """Of one request: the same for each of its answers, in whichever process they are written."""

    def __init__(
        self,
        formats: Formats,
        use: ToolUse,
        begin: Begins,
        response_id: str,
        show: bool,
        going_on: bool,
        budget: "Budget | None",
        param: str,
    ) -> None:
        self._formats = formats
        self._framing = formats.framing
        self._going_on = going_on
        self._budget = budget
        self._tools = use.callable
        self._forced = use.choice == "required"
        self._strict = any(tool.strict for tool in self._tools)
        self._single = not use.parallel or use.named
        self._begin = begin
        self._response_id = response_id
        self._show = show
        self._param = param
        self._format = formats.tools
        if self._forced and not self._can_enforce():
            self._format = FALLBACK

    @property
    def shown_token_ids(self) -> frozenset[int]:
        """Special tokens that belong to the text all the same."""
        read = self._format is not None and (self._tools or self._framing is not None)
        marks = list(self._format.marks) if read and self._format is not None else []
        if self._begin is not Begins.NEVER and (reasoning := self._formats.reasoning) is not None:
            marks += [reasoning.open, reasoning.close]
        known = self._formats.token_ids
        return frozenset(known[mark] for mark in marks if mark in known)

    def reader(self, choice: int) -> Reader:
        """For the answer with this index."""
        reader: Reader = PlainReader()
        short = self._formats.tools is not None and self._formats.tools.short_ids
        new_id = CallIds(self._response_id, choice, short=short)
        if self._framing is not None and self._format is self._framing:
            return self._framing.whole_reader(
                self._tools, new_id, single=self._single, show=self._show, going_on=self._going_on
            )
        if self._tools:
            assert self._format is not None
            reader = self._format.reader(self._tools, new_id, single=self._single)
        if self._begin is Begins.NEVER:
            return reader
        assert self._formats.reasoning is not None
        return ReasoningReader(self._formats.reasoning, self._begin, reader, show=self._show)

    def constrain(self, answer: Constraint | None) -> Constraint | None:
        """What the whole answer has to follow; `answer`: what its text has to. Raises Unsupported.

        Calls that are forced leave no place for text.
        """
        lead, rules = self._lead()
        text = self._before_text()
        limit = self._budget if lead else None
        if not self._tools and answer is None and limit is not None:
            return _framed(f"start: {lead}{text}TEXT?\n{rules}TEXT: {FREE_TEXT}", (), None, limit.param)
        if not self._tools:
            if answer is None or not (lead or text):
                return answer
            return _framed(f"start: {lead}{text}@answer\n{rules}", (), answer, answer.param)
        if answer is None and not self._forced and not self._strict and limit is None:
            return None
        param = self._param if answer is None or self._forced else answer.param
        if answer is None and not self._forced and not self._strict and limit is not None:
            param = limit.param
        enforced, calls = self._calls(param)
        rules += calls.lark
        if self._forced:
            body, answer = "calls", None
        elif answer is not None:
            body = f"(calls | {text}@answer)"
        elif text:
            body = f"(calls | {text}TEXT?)"
            rules += f"\nTEXT: {FREE_TEXT}"
        elif enforced.bare:
            body = "(calls | TEXT)?"
            rules += f"\nTEXT: /\\s{{0,9}}[^\\s{enforced.bare}](.|\\n)*/"
        elif enforced.opener in self._formats.token_ids:
            body = "TEXT? calls?"
            rules += f"\nTEXT: {FREE_TEXT}"
        else:
            why = f"its mark {enforced.opener} is no token of this model"
            raise Unsupported(f"{param}: {self._cannot(why)}", param=param)
        return _framed(f"start: {lead}{body}\n{rules}", calls.arguments, answer, param)

    def _calls(self, param: str) -> tuple[ToolFormat, CallGrammar]:
        """How calls are made valid. Raises Unsupported."""
        assert self._format is not None, "plan_reading has seen to that"
        arguments = list(map(self._arguments, self._tools))
        try:
            calls = self._format.grammar(arguments, self._formats.lark, single=self._single)
        except UnenforceableTool as error:
            raise Unsupported(f"{param}: {self._cannot(str(error))}", param=param) from None
        return self._format, calls

    def _can_enforce(self) -> bool:
        try:
            return self._format is not None and bool(self._calls(self._param))
        except Unsupported:
            return False

    def _before_text(self) -> str:
        if self._framing is None or self._going_on or self._format is not self._framing:
            return ""
        return f"{self._framing.before_text(self._formats.lark)} "

    def _lead(self) -> tuple[str, str]:
        budget = self._budget.num_tokens if self._budget is not None else None
        if self._framing is not None and self._format is self._framing:
            return ("", "") if self._going_on else self._framing.before_answer(self._formats.lark, budget)
        reasoning = self._formats.reasoning
        if reasoning is None or self._begin is Begins.NEVER:
            return "", ""
        return before_answer(
            self._begin, self._formats.lark(reasoning.open), self._formats.lark(reasoning.close), budget
        )

    def _arguments(self, tool: Tool) -> ToolArguments:
        checked = self._forced or tool.strict
        return ToolArguments(tool.name, tool.parameters if checked else ANY_ARGUMENTS)

    def _cannot(self, why: str) -> str:
        assert self._format is not None
        what = "strict tools" if self._strict else "tools beside a format of the text"
        return (
            f"{what} cannot be enforced in the way that this model writes calls ({self._format.name}) with "
            f"tool_choice auto: {why}; force calls, or leave one of them out"
        )


def _framed(
    lark: str, arguments: tuple[ToolArguments, ...], answer: Constraint | None, param: str
) -> Constraint:
    inner = Inner(answer.kind, answer.source, answer.style) if answer is not None else None
    return Constraint(param, "frame", msgspec.json.encode(Frame(lark, arguments, inner)).decode())
