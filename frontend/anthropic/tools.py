"""Tools as Anthropic's API has them: {"name": …, "input_schema": …}, and kinds of its own that are skipped.

Those with a `type` (web_search_20250305, bash_20250124, …) are known to Anthropic's models and servers only:
the model is not told of them, and the message says so in `skipped_tools`.
"""

from typing import Any, Literal

from msgspec import Struct

from protocol.errors import InvalidRequest

from ..tools import OfferedTools, Tool, ToolUse, check_num_tools, no_parameters

CUSTOM = "custom"


class AnthropicTool(Struct, frozen=True, kw_only=True):
    name: str
    type: str | None = None
    """custom, or omitted; everything else is skipped."""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    """A JSON Schema; none: it takes no input."""
    strict: bool | None = None


class AnthropicToolChoice(Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """With `tool`: which."""
    disable_parallel_tool_use: bool | None = None


def offered_tools(tools: list[AnthropicTool] | None, choice: AnthropicToolChoice | None) -> OfferedTools:
    """Raises InvalidRequest."""
    check_num_tools(tools or (), "tools")
    known, skipped = [], []
    for one in tools or ():
        if one.type in (None, CUSTOM):
            schema = no_parameters() if one.input_schema is None else one.input_schema
            known.append(Tool(one.name, one.description, schema, bool(one.strict)))
        else:
            skipped.append(one.type)
    mode, allowed = _choice(choice)
    parallel = choice is None or not choice.disable_parallel_tool_use
    use = ToolUse(tools=tuple(known), choice=mode, allowed=allowed, parallel=parallel)
    use.check("tools", "tool_choice")
    return OfferedTools(use, skipped)


def _choice(
    given: AnthropicToolChoice | None,
) -> tuple[Literal["none", "auto", "required"], tuple[str, ...] | None]:
    if given is None or given.type == "auto":
        return "auto", None
    if given.type == "none":
        return "none", None
    if given.type == "any":
        return "required", None
    if given.name is None:
        raise InvalidRequest("tool_choice.name: required, but missing", param="tool_choice.name")
    return "required", (given.name,)
