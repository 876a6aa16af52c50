"""Tools as /v1/responses has them: {"type": "function", "name": …, "parameters": …}. Other kinds are skipped.

Tools that only their provider can run (web_search, mcp, …) are not offered to the model, and the response
says so: agents send them along, and do without.
"""

from typing import Any, Literal

from msgspec import Struct

from protocol.errors import InvalidRequest, Unsupported

from ...tools import OfferedTools, Tool, ToolUse, check_num_tools, no_parameters
from ..tools import Mode, mode_of


class ResponsesTool(Struct, frozen=True, kw_only=True):
    """`name` and the rest are of functions."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema; none: it takes no arguments."""
    strict: bool | None = None


class AllowedTool(Struct, frozen=True, kw_only=True):
    type: str
    name: str | None = None


class ResponsesToolChoice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One certain function, or the choice among some."""

    type: str
    """function or allowed_tools."""
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] | None = None


def offered_tools(
    tools: list[ResponsesTool] | None, choice: str | ResponsesToolChoice | None, parallel: bool | None
) -> OfferedTools:
    """Raises InvalidRequest."""
    check_num_tools(tools or (), "tools")
    known = tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(tools or ()) if one.type == "function")
    mode, allowed = _choice(choice)
    use = ToolUse(tools=known, choice=mode, allowed=allowed, parallel=parallel is not False)
    use.check("tools", "tool_choice")
    return OfferedTools(use, [one.type for one in tools or () if one.type != "function"])


def _tool(given: ResponsesTool, where: str) -> Tool:
    if not given.name:
        raise InvalidRequest(f"{where}.name: required, but missing", param=f"{where}.name")
    parameters = no_parameters() if given.parameters is None else given.parameters
    return Tool(given.name, given.description, parameters, bool(given.strict))


def _choice(given: str | ResponsesToolChoice | None) -> tuple[Mode, tuple[str, ...] | None]:
    match given:
        case None | str():
            return mode_of(given), None
        case ResponsesToolChoice(type="function", name=str(name)):
            return "required", (name,)
        case ResponsesToolChoice(type="allowed_tools", mode=mode, tools=list(tools)):
            return mode or "auto", tuple(one.name or "" for one in tools if one.type == "function")
        case ResponsesToolChoice(type="function" | "allowed_tools"):
            field = "tool_choice.name" if given.type == "function" else "tool_choice.tools"
            raise InvalidRequest(f"{field}: required, but missing", param=field)
        case _:
            what = f"tool_choice.type: {given.type!r} is not supported; function and allowed_tools are"
            raise Unsupported(what, param="tool_choice.type")
