"""Every option of a command as a record, read off its config Structs; and how a written value is read.

Knows nothing of argument vectors, environments or files: those hand over raw values with the name of
their source, and get a checked value or an error that names source, value and rule.
"""

import difflib
import math
from collections.abc import Iterable
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from protocol.errors import StartupError
from protocol.options import ServeOptions

from . import quantities

SHARED = {*ServeOptions.__struct_fields__, "connection"}
"""Sections that several commands have. All others are one command's own."""
Root = TypeVar("Root", bound=Struct)
"""All options of one command: a Struct whose fields are sections."""

BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class Option(Struct, frozen=True):
    """One field of one section."""

    section: str
    """Field of the command's Struct."""
    name: str
    """Field of the section, unique among all of a command."""
    declared: Any
    """The annotated type, with its range; of `X | None`, only X: None is a default, and cannot be given."""
    default: Any
    help: str
    alias: str = ""
    unit: quantities.Unit | None = None
    secret: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        own = f"{self.section.upper()}_" if self.is_own else ""
        return f"TERN_{own}{self.name.upper()}"

    @property
    def is_own(self) -> bool:
        """It has the name of a command before its own, as another command may have one of that name."""
        return self.section not in SHARED

    @property
    def base(self) -> Any:
        """The type without its range: bool, int, float, str, Literal[…] or a tuple of one of these."""
        return get_args(self.declared)[0]

    @property
    def is_switch(self) -> bool:
        return self.base is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.base) is tuple

    @property
    def single(self) -> Any:
        """The type of a value, or of each in a list."""
        if not self.is_list:
            return self.base
        entry = get_args(self.base)[0]
        return get_args(entry)[0] if get_origin(entry) is Annotated else entry

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.single) if get_origin(self.single) is Literal else ()

    def shown_default(self) -> str:
        """For the help text; empty where the description says it."""
        if self.default is None:
            return ""
        if self.unit is not None:
            return quantities.show(self.default, self.unit)
        if self.is_switch:
            return "on" if self.default else "off"
        if self.is_list:
            return " ".join(map(str, self.default))
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return f"{self.default}"

    def read(self, raw: object, source: str) -> Any:
        """A checked value from text, or from a value of a TOML file. Raises StartupError."""
        try:
            if self.is_list:
                given = raw.split(",") if isinstance(raw, str) else raw
                value = [self._parse(one) for one in given] if isinstance(given, list) else given
                if isinstance(value, list) and "" in value:
                    raise ValueError("expected entries that are not empty")
            else:
                value = self._parse(raw)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("expected a finite number")
            return msgspec.convert(value, self.declared)
        except ValueError as error:
            rule = (
                self._rule(raw)
                if self.choices
                else str(error).partition(" - at ")[0].replace("`", "").replace("Expected", "expected")
            )
            written = ",".join(map(str, raw)) if isinstance(raw, list) else f"{raw}"
            shown = "(secret)" if self.secret else written
            raise StartupError(f"{source} {shown}: {rule}", hint=self.help) from None

    def _parse(self, text: object) -> Any:
        """Of one entry. What is no text has its type already."""
        if not isinstance(text, str):
            return text
        if self.unit is not None:
            return quantities.parse(text, self.unit)
        if self.is_switch:
            if text.lower() not in BOOLEANS:
                raise ValueError(f"expected one of {', '.join(BOOLEANS)}")
            return BOOLEANS[text.lower()]
        if self.single is int or self.single is float:
            try:
                return self.single(text)
            except ValueError:
                raise ValueError(
                    f"expected {'a whole number' if self.single is int else 'a number'}"
                ) from None
        return text

    def _rule(self, raw: object) -> str:
        return f"expected one of {', '.join(self.choices)}{did_you_mean(str(raw), self.choices)}"


def declared_options(root: type[Struct] = ServeOptions) -> list[Option]:
    """All options of a command, in the order of their declaration."""
    return [
        _option(section, name, declared, getattr(default, name))
        for section, default in ((field.name, field.default) for field in msgspec.structs.fields(root))
        for name, declared in get_type_hints(type(default), include_extras=True).items()
    ]


def build(root: type[Root], values: dict[str, Any]) -> Root:
    """Sections from checked values by option name; what is missing keeps its default."""
    sections: dict[str, dict[str, Any]] = {}
    for option in declared_options(root):
        if option.name in values:
            sections.setdefault(option.section, {})[option.name] = values[option.name]
    defaults = root()
    return root(
        **{
            name: msgspec.structs.replace(getattr(defaults, name), **given)
            for name, given in sections.items()
        }
    )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _option(section: str, name: str, declared: Any, default: Any) -> Option:
    if NoneType in get_args(declared):
        declared = next(one for one in get_args(declared) if one is not NoneType)
    meta = next(entry for entry in get_args(declared)[1:] if isinstance(entry, Meta))
    extra = meta.extra or {}
    return Option(
        section=section,
        name=name,
        declared=declared,
        default=default,
        help=meta.description or "",
        alias=extra.get("flag", ""),
        unit=extra.get("unit"),
        secret=extra.get("secret", False),
    )
