"""`tern completion bash | zsh | fish`: a script for the shell, made from the declarations of the options.

eval "$(tern completion bash)"        in ~/.bashrc; likewise zsh
tern completion fish | source         in ~/.config/fish/config.fish
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from protocol.errors import StartupError

from .chat import CHAT
from .complete import COMPLETE
from .doctor import DOCTOR
from .flags import SERVE, Command
from .generate import GENERATE

SHELLS = ("bash", "zsh", "fish")
COMMANDS: tuple[Command[Any], ...] = (SERVE, CHAT, COMPLETE, GENERATE, DOCTOR)
OTHERS = {
    "bench": ("overhead", "model", "peers", "kernels", "rest", "growth", "recover", "overload", "context",
              "structured", "quality", "quantization"),
    "replay": (), "soak": (), "keys": (), "completion": SHELLS, "version": (), "help": (),
}  # fmt: skip
"""Commands whose options are not declared, and their first argument."""


class Flag(Struct, frozen=True):
    """What a shell needs to know of an option."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...] = ()
    takes_value: bool = True


def flags_of(command: Command[Any]) -> list[Flag]:
    """All of a command."""
    return [
        Flag(
            tuple(action.option_strings),
            " ".join((action.help or "").split("(default:")[0].replace("%%", "%").split()),
            _choices(action.metavar),
            action.nargs != 0,
        )
        for action in command.parser()._actions
        if action.option_strings
    ]


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
        cases.append(f'    {command.name}) words="{words}" ;;')
        for flag in flags:
            if flag.choices:
                names = "|".join(f"{command.name}:{name}" for name in flag.names)
                values.append(
                    f'    {names}) COMPREPLY=($(compgen -W "{" ".join(flag.choices)}" -- "$word")); return ;;'
                )
    cases += [f'    {name}) words="{" ".join(words)}" ;;' for name, words in OTHERS.items()]
    names = " ".join([command.name for command in COMMANDS] + list(OTHERS))
    return f"""\
_tern() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{names}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}:$before" in
{chr(10).join(values)}
  esac
  case "${{COMP_WORDS[1]}}" in
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
        told = _quoted(command.description)
        lines.append(f"complete -c tern -f -n __fish_use_subcommand -a {command.name} -d {told}")
        for flag in flags_of(command):
            shown = [f"-l {n[2:]}" if n.startswith("--") else f"-o {n[1:]}" for n in flag.names]
            value = f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else " -r" * flag.takes_value
            lines.append(
                f"complete -c tern -n '__fish_seen_subcommand_from {command.name}' {' '.join(shown)}{value}"
                f" -d {_quoted(flag.help)}"
            )
    return "\n".join(lines) + "\n"


def _choices(metavar: object) -> tuple[str, ...]:
    """Of "{a,b}", as flags.py writes them."""
    text = metavar if isinstance(metavar, str) else ""
    return tuple(text[1:-1].split(",")) if text.startswith("{") else ()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "’") + "'"
