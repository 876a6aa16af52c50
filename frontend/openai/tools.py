"""Tools as /v1/chat/completions has them: {"type": "function", "function": {"name": …, "parameters": …}}."""

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from protocol.errors import InvalidRequest, Unsupported

from ..tools import Tool, ToolUse, check_num_tools, no_parameters

Mode = Literal["none", "auto", "required"]


class FunctionDefinition(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema; none: it takes no arguments."""
    strict: bool | None = None


class ToolDefinition(Struct, frozen=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["function"]})]
    function: FunctionDefinition | None = None


class FunctionName(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoice(Struct, frozen=True):
    """One certain function, or the choice among some."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


def tool_use(
    tools: list[ToolDefinition] | None, choice: str | ToolChoice | None, parallel: bool | None
) -> ToolUse:
    """Raises InvalidRequest, or Unsupported for what is no function."""
    check_num_tools(tools or (), "tools")
    known = tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(tools or ()))
    mode, allowed = _choice(choice)
    if not known and mode == "required":
        raise InvalidRequest("tool_choice: there are no tools to choose from", param="tool_choice")
    use = ToolUse(tools=known, choice=mode, allowed=allowed, parallel=parallel is not False)
    use.check("tools", "tool_choice")
    return use


def _tool(given: ToolDefinition, where: str) -> Tool:
    if given.type != "function":
        what = f"{where}.type: {given.type!r} is not supported; only function is"
        raise Unsupported(what, param=f"{where}.type")
    if given.function is None:
        raise InvalidRequest(f"{where}.function: required, but missing", param=f"{where}.function")
    function = given.function
    parameters = no_parameters() if function.parameters is None else function.parameters
    return Tool(function.name, function.description, parameters, bool(function.strict))


def mode_of(given: str | None) -> Mode:
    """What a `tool_choice` says that is no object. Raises InvalidRequest."""
    match given:
        case None:
            return "auto"
        case "none" | "auto" | "required":
            return given
        case _:
            what = f"tool_choice: {given!r} is not one of {', '.join(get_args(Mode))}, or an object"
            raise InvalidRequest(what, param="tool_choice")


def _choice(given: str | ToolChoice | None) -> tuple[Mode, tuple[str, ...] | None]:
    match given:
        case None | str():
            return mode_of(given), None
        case ToolChoice(type="function", function=FunctionName(name=name)):
            return "required", (name,)
        case ToolChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=mode, tools=tools)):
            return mode, tuple(tool.function.name for tool in tools)
        case _:
            field = f"tool_choice.{given.type}"
            raise InvalidRequest(f"{field}: required, but missing", param=field)
