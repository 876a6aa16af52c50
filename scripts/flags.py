"""A command's options from their three sources: a flag beats the environment, which beats the file.

Everything is generated from the config Structs. Nothing is ignored: an unknown flag, key or TERN_
variable, and a value that breaks its rule, stops the start and says what was meant. What another command
knows, in the environment or in a file, is none of this one's business.
"""

import argparse
import inspect
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

import msgspec
from msgspec import Struct

from protocol.errors import StartupError
from protocol.options import ServeOptions

from .command_options import ROOTS
from .options import Option, Root, build, declared_options, did_you_mean

CONFIG_FLAG, CONFIG_VARIABLE = "--config", "TERN_CONFIG"
FOR_WORKERS = {"TERN_FAULTS", "TERN_FAULTS_DIR"}
"""No options: faults on purpose, for tests; see worker/faults.py, which checks them."""
FOR_SCRIPTS = {"TERN_ENDPOINT_FILE"}
"""No option: where scripts that attach to an engine core look for it."""
EPILOG = """\
Every option can also be given as TERN_<NAME> in the environment{own}
(lists with commas), or in a TOML file, flat or in sections. A flag beats the environment, which beats the
file.
"""


class Parser(argparse.ArgumentParser):
    """Raises StartupError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise StartupError(message, hint=f"{self.prog} --help lists what there is")


@dataclass(frozen=True)
class Command(Generic[Root]):
    """What `tern NAME` takes."""

    name: str
    description: str
    root: type[Root]
    positional: str = ""
    """The option that may be given without its flag."""
    hands_on: bool = False
    """What it does not know is for the `tern serve` that it starts. A positional then comes first."""

    def parser(self) -> Parser:
        """Flags grouped by section. Values stay text here: options.py reads them, whatever their source."""
        options = declared_options(self.root)
        sections = {option.section for option in options if option.is_own}
        own = "".join(f", [{section}] as TERN_{section.upper()}_<NAME>" for section in sections)
        metavar = self.positional.upper()
        further = " [options of tern serve]" if self.hands_on else ""
        parser = Parser(
            prog=f"tern {self.name}",
            usage=f"tern {self.name} {f'[{metavar}] ' if metavar else ''}[options]{further}",
            description=self.description,
            epilog=EPILOG.format(own=own),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=34, width=110
            ),
        )
        if self.positional and not self.hands_on:
            parser.add_argument(
                "positional", metavar=metavar, nargs="?", help=f"the same as --{self.positional}"
            )
        parser.add_argument(CONFIG_FLAG, metavar="FILE", help="TOML file of options")
        groups = {
            field.name: parser.add_argument_group(self._title(type(field.default)))
            for field in msgspec.structs.fields(self.root)
        }
        for option in options:
            _add(groups[option.section], option)
        return parser

    def _title(self, section: type[Struct]) -> str:
        """Of a group of options; a benchmark's has been said."""
        title = inspect.getdoc(section) or ""
        return "what is measured" if title == self.description else title.rstrip(".")

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Root, frozenset[str]]:
        """(all options, checked; the names of those given as flags). Raises StartupError."""
        root, given, extras = self._parse(argv, environ)
        if extras:
            raise _unknown_argument(extras, self.parser())
        return root, given

    def parse_own(self, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Root, list[str]]:
        """(its own options, checked; the arguments for `tern serve`, which are not). Raises StartupError."""
        assert self.hands_on
        if self.positional and argv and not argv[0].startswith("-"):
            argv = [f"--{self.positional}", *argv]
        root, _, extras = self._parse(argv, environ)
        return root, extras

    def _parse(
        self, argv: Sequence[str], environ: Mapping[str, str]
    ) -> tuple[Root, frozenset[str], list[str]]:
        namespace, extras = self.parser().parse_known_args(argv)
        given = vars(namespace)
        if "positional" in given:
            name, value = self.positional, given.pop("positional")
            if given.setdefault(name, value) != value:
                raise StartupError(f"two {name}s: {value} and --{name} {given[name]}", hint="give one")

        options = {option.name: option for option in declared_options(self.root)}
        values: dict[str, Any] = {}
        if self.hands_on and "config" in given:
            extras += [CONFIG_FLAG, given["config"]]
        path = given.pop("config", environ.get(CONFIG_VARIABLE, ""))
        for name, raw, source in (*_from_file(path, options), *_from_environment(environ, options)):
            values[name] = options[name].read(raw, source)
        for name, raw in given.items():
            values[name] = options[name].read(raw, options[name].flag)
        root = build(self.root, values)
        if isinstance(root, ServeOptions):
            _check_together(root)
        return root, frozenset(given), extras


SERVE = Command("serve", "Serve a model behind the OpenAI API.", ServeOptions, positional="model")


def parse_serve(argv: Sequence[str], environ: Mapping[str, str]) -> ServeOptions:
    """All options of `tern serve`, checked. Raises StartupError."""
    return SERVE.parse(argv, environ)[0]


def as_flags(options: ServeOptions) -> list[str]:
    """Flags from which `parse_serve` makes these options again, in an environment without any."""
    flags: list[str] = []
    for option in declared_options():
        value = getattr(getattr(options, option.section), option.name)
        if value == option.default:
            continue
        if option.is_switch:
            flags.append(option.flag if value else option.flag.replace("--", "--no-", 1))
        else:
            flags += [option.flag, *map(str, value if option.is_list else [value])]
    return flags


def _add(group: "argparse._ArgumentGroup", option: Option) -> None:
    default = option.shown_default()
    text = (option.help + (f" (default: {default})" if default else "")).replace("%", "%%")
    names = [option.flag, *([option.alias] if option.alias else [])]
    if option.is_switch:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        return
    kind = {int: "N", float: "X", str: "TEXT"}.get(option.single, "TEXT")
    metavar = (
        "{" + ",".join(option.choices) + "}" if option.choices else "SIZE" if option.unit == "bytes" else kind
    )
    if option.is_list:
        group.add_argument(*names, nargs="+", action="extend", metavar=metavar, help=text)
    else:
        group.add_argument(*names, metavar=metavar, help=text)


def _unknown_argument(extras: list[str], parser: Parser) -> StartupError:
    flag = next((extra.partition("=")[0] for extra in extras if extra.startswith("-")), "")
    hint = f"{parser.prog} --help lists what there is"
    if not flag:
        return StartupError(f"unexpected argument {extras[0]}", hint=hint)
    negated = flag.startswith("--no-")
    known = [name for name in parser._option_string_actions if name.startswith("--no-") == negated]
    return StartupError(f"unknown flag {flag}{did_you_mean(flag, known)}", hint=hint)


def _from_environment(
    environ: Mapping[str, str], options: Mapping[str, Option]
) -> Iterator[tuple[str, object, str]]:
    """(name, raw value, source). A variable that is set but empty counts as not given."""
    by_variable = {option.variable: option for option in options.values()}
    known = {option.variable for root in ROOTS for option in declared_options(root)}
    for variable, text in environ.items():
        if not variable.startswith("TERN_") or variable in {CONFIG_VARIABLE, *FOR_WORKERS, *FOR_SCRIPTS}:
            continue
        if variable not in known:
            hint = "TERN_ is for options: unset it, or give it another name (Kubernetes sets such variables "
            hint += "for a service named tern: enableServiceLinks: false)"
            meant = did_you_mean(variable, [*by_variable, CONFIG_VARIABLE])
            raise StartupError(f"unknown environment variable {variable}{meant}", hint=hint)
        if text and variable in by_variable:
            yield by_variable[variable].name, text, f"{variable}="


def _from_file(path: str, options: Mapping[str, Option]) -> Iterator[tuple[str, object, str]]:
    """(name, raw value, source) of a TOML file, whose keys are flag names with - or _."""
    if not path:
        return
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise StartupError(f"{CONFIG_FLAG} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{CONFIG_FLAG} {path}: not a TOML file: {error}") from None

    everywhere = [option for root in ROOTS for option in declared_options(root)]
    sections = {option.section for option in everywhere}
    homes = {(option.section, option.name) for option in everywhere}
    by_name = [*reversed(everywhere), *options.values()]
    flat = {option.name: option.section for option in by_name if not option.is_own}
    seen: set[str] = set()
    for section, key, raw in _entries(document):
        name = key.replace("-", "_")
        where = f"{path}: [{section}] {key}" if section else f"{path}: {key}"
        if section and section not in sections:
            raise StartupError(f"{path}: unknown section [{section}]{did_you_mean(section, sections)}")
        home = section or flat.get(name, "")
        if (home, name) not in homes:
            if section and name in flat:
                raise StartupError(f"{where}: belongs to [{flat[name]}]")
            known = {name for section_, name in homes if section_ == section} if section else flat
            raise StartupError(f"{where}: unknown option{did_you_mean(name, known)}")
        if f"{home}.{name}" in seen:
            raise StartupError(f"{where}: given twice", hint="keep one")
        seen.add(f"{home}.{name}")
        if name in options and options[name].section == home:
            yield name, raw, f"{where} ="


def _entries(document: dict[str, Any]) -> Iterator[tuple[str, str, object]]:
    """(section or "", key, value). A table is a section; `model` may be either."""
    for key, value in document.items():
        if isinstance(value, dict):
            for inner, raw in value.items():
                yield key, inner, raw
        else:
            yield "", key, value


def _check_together(options: ServeOptions) -> None:
    scheduler = options.scheduler
    if scheduler.max_num_batched_tokens < scheduler.max_num_seqs:
        raise StartupError(
            f"--max-num-batched-tokens {scheduler.max_num_batched_tokens} is less than --max-num-seqs"
            f" {scheduler.max_num_seqs}: a step could not give every running request its one token",
            hint=f"raise the former to {scheduler.max_num_seqs} or more, or lower the latter",
        )
