"""`tern completion bash | zsh | fish`: a script for the shell, made from the declarations of the options.

eval "$(tern completion bash)"        in ~/.bashrc; likewise zsh
tern completion fish | source         in ~/.config/fish/config.fish
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from protocol.errors import StartupError

from .bench.commands import COMMANDS as BENCHMARKS
from .chat import CHAT
from .complete import COMPLETE
from .doctor import DOCTOR
from .flags import SERVE, Command
from .generate import GENERATE
from .keys import KEYS
from .replay import REPLAY
from .soak.cli import SOAK

SHELLS = ("bash", "zsh", "fish")
COMMANDS: tuple[Command[Any], ...] = (
    SERVE,
    CHAT,
    COMPLETE,
    GENERATE,
    DOCTOR,
    REPLAY,
    SOAK,
    KEYS,
    *BENCHMARKS.values(),
)
OTHERS = {"bench": tuple(BENCHMARKS), "completion": SHELLS, "version": (), "help": ()}
"""Commands without options, and their first argument."""


class Flag(Struct, frozen=True):
    """What a shell needs to know of an option."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...] = ()
    takes_value: bool = True


def flags_of(command: Command[Any]) -> list[Flag]:
    """All of a command, and those that it hands on."""
    further = flags_of(SERVE) if command.hands_on else []
    own = [
        Flag(
            tuple(action.option_strings),
            " ".join((action.help or "").split("(default:")[0].replace("%%", "%").split()),
            _choices(action.metavar),
            action.nargs != 0,
        )
        for action in command.parser()._actions
        if action.option_strings
    ]
    known = {name for flag in own for name in flag.names}
    return own + [flag for flag in further if known.isdisjoint(flag.names)]


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Raises StartupError for a shell that is none."""
    shell = argv[0] if len(argv) == 1 else ""
    match shell:
        case "bash":
            print(bash(), end="")
        case "zsh":
            print(f"autoload -U +X bashcompinit && bashcompinit\n{bash()}", end="")
        case "fish":
            print(fish(), end="")
        case _:
            raise StartupError(
                f"tern completion {' '.join(argv)}: expected one of {', '.join(SHELLS)}",
                hint='eval "$(tern completion bash)"',
            )
    return 0


def bash() -> str:
    """zsh reads it, too, through bashcompinit."""
    cases, values = [], []
    for command in COMMANDS:
        flags = flags_of(command)
        words = " ".join(name for flag in flags for name in flag.names)
        cases.append(f'    "{command.name}") words="{words}" ;;')
        for flag in flags:
            if flag.choices:
                names = "|".join(f'"{command.name}:{name}"' for name in flag.names)
                values.append(
                    f'    {names}) COMPREPLY=($(compgen -W "{" ".join(flag.choices)}" -- "$word")); return ;;'
                )
    cases += [f'    {name}) words="{" ".join(words)}" ;;' for name, words in OTHERS.items()]
    names = " ".join([command.name for command in COMMANDS if " " not in command.name] + list(OTHERS))
    return f"""\
_tern() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local command="${{COMP_WORDS[1]}}" words
  [ "$command" = bench ] && [ "$COMP_CWORD" -gt 2 ] && command="bench ${{COMP_WORDS[2]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{names}" -- "$word"))
    return
  fi
  case "$command:$before" in
{chr(10).join(values)}
  esac
  case "$command" in
{chr(10).join(cases)}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _tern tern
"""


def fish() -> str:
    lines = ["complete -c tern -f -n __fish_use_subcommand -a " + _quoted(name) for name in OTHERS]
    for name, words in OTHERS.items():
        if words:
            lines.append(
                f"complete -c tern -f -n '__fish_seen_subcommand_from {name}' -a {_quoted(' '.join(words))}"
            )
    for command in COMMANDS:
        first, _, benchmark = command.name.partition(" ")
        there = f"__fish_seen_subcommand_from {first}"
        if benchmark:
            there += f"; and __fish_seen_subcommand_from {benchmark}"
        else:
            told = _quoted(command.description.partition("\n")[0])
            lines.append(f"complete -c tern -f -n __fish_use_subcommand -a {first} -d {told}")
        for flag in flags_of(command):
            shown = [f"-l {n[2:]}" if n.startswith("--") else f"-o {n[1:]}" for n in flag.names]
            value = f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else " -r" * flag.takes_value
            lines.append(f"complete -c tern -n '{there}' {' '.join(shown)}{value} -d {_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _choices(metavar: object) -> tuple[str, ...]:
    """Of "{a,b}", as flags.py writes them."""
    text = metavar if isinstance(metavar, str) else ""
    return tuple(text[1:-1].split(",")) if text.startswith("{") else ()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "’") + "'"
