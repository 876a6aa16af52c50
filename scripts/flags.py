"""`tern serve`'s options from their three sources: a flag beats the environment, which beats the file.

Everything is generated from the config Structs. Nothing is ignored: an unknown flag, key or TERN_
variable, and a value that breaks its rule, stops the start and says what was meant.
"""

import argparse
import inspect
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from protocol.config import ServeOptions
from protocol.errors import StartupError

from .options import Option, build, declared_options, did_you_mean

CONFIG_FLAG, CONFIG_VARIABLE = "--config", "TERN_CONFIG"
FOR_WORKERS = {"TERN_FAULTS", "TERN_FAULTS_DIR"}
"""No options: faults on purpose, for tests; see worker/faults.py, which checks them."""
EPILOG = """\
Every option can also be given as TERN_<NAME> in the environment (TERN_MAX_NUM_SEQS=64; lists with
commas), or in a TOML file, flat or in sections. A flag beats the environment, which beats the file.
"""


class Parser(argparse.ArgumentParser):
    """Raises StartupError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise StartupError(message, hint=f"{self.prog} --help lists what there is")


def serve_parser() -> Parser:
    """Flags grouped by section. Values stay text here: options.py reads them, whatever their source."""
    parser = Parser(
        prog="tern serve",
        usage="tern serve [MODEL] [options]",
        description="Serve a model behind the OpenAI API.",
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=110
        ),
    )
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help="the same as --model")
    parser.add_argument(CONFIG_FLAG, metavar="FILE", help="TOML file of options")
    groups = {
        field.name: parser.add_argument_group((inspect.getdoc(type(field.default)) or "").rstrip("."))
        for field in msgspec.structs.fields(ServeOptions)
    }
    for option in declared_options():
        _add(groups[option.section], option)
    return parser


def parse_serve(argv: Sequence[str], environ: Mapping[str, str]) -> ServeOptions:
    """All options, checked. Raises StartupError."""
    parser = serve_parser()
    namespace, extras = parser.parse_known_args(argv)
    given = vars(namespace)
    if extras:
        raise _unknown_argument(extras, parser)
    if "positional_model" in given:
        model = given.pop("positional_model")
        if given.setdefault("model", model) != model:
            raise StartupError(f"two models: {model} and --model {given['model']}", hint="give one")

    options = {option.name: option for option in declared_options()}
    values: dict[str, Any] = {}
    path = given.pop("config", environ.get(CONFIG_VARIABLE, ""))
    for name, raw, source in (*_from_file(path, options), *_from_environment(environ, options)):
        values[name] = options[name].read(raw, source)
    for name, raw in given.items():
        values[name] = options[name].read(raw, options[name].flag)
    serve = build(values)
    _check_together(serve)
    return serve


def _add(group: "argparse._ArgumentGroup", option: Option) -> None:
    default = option.shown_default()
    text = (option.help + (f" (default: {default})" if default else "")).replace("%", "%%")
    names = [option.flag, *([option.alias] if option.alias else [])]
    if option.is_switch:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        return
    kind = {int: "N", float: "X", str: "TEXT"}.get(option.base, "TEXT")
    metavar = (
        "{" + ",".join(option.choices) + "}" if option.choices else "SIZE" if option.unit == "bytes" else kind
    )
    if option.is_list:
        group.add_argument(*names, nargs="+", metavar=metavar, help=text)
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
    for variable, text in environ.items():
        if not variable.startswith("TERN_") or variable in {CONFIG_VARIABLE, *FOR_WORKERS}:
            continue
        if variable not in by_variable:
            hint = "TERN_ is for options: unset it, or give it another name (Kubernetes sets such variables "
            hint += "for a service named tern: enableServiceLinks: false)"
            meant = did_you_mean(variable, [*by_variable, CONFIG_VARIABLE])
            raise StartupError(f"unknown environment variable {variable}{meant}", hint=hint)
        if text:
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

    sections = {option.section for option in options.values()}
    seen: set[str] = set()
    for section, key, raw in _entries(document):
        name = key.replace("-", "_")
        where = f"{path}: [{section}] {key}" if section else f"{path}: {key}"
        if section and section not in sections:
            raise StartupError(f"{path}: unknown section [{section}]{did_you_mean(section, sections)}")
        if name not in options:
            raise StartupError(f"{where}: unknown option{did_you_mean(name, options)}")
        if section and options[name].section != section:
            raise StartupError(f"{where}: belongs to [{options[name].section}]")
        if name in seen:
            raise StartupError(f"{where}: given twice", hint="keep one")
        seen.add(name)
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
