"""Shell completion, in the shells that are here."""

import re
import shlex
import subprocess

import pytest

from protocol.errors import StartupError
from scripts import cli, completion
from scripts.bench import cli as bench

BENCH_NAMES = [command.name for command in completion.COMMANDS if command.name.startswith("bench ")]


def complete(shell: str, *words: str) -> list[str]:
    """What bash, or zsh through its bashcompinit, offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"""
eval "$(cat)"
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
_tern
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    script = completion.bash()
    done = subprocess.run([shell, "-c", code], input=script, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices() -> None:
    assert complete("bash", "tern", "ge") == ["generate"]
    assert complete("bash", "tern", "serve", "--max-model") == ["--max-model-len"]
    assert complete("bash", "tern", "serve", "--no-mm") == ["--no-mmap"]
    assert complete("bash", "tern", "generate", "--dtype", "float") == ["float32", "float16"]
    assert complete("bash", "tern", "serve", "-q", "int") == ["int8", "int4"]
    assert complete("bash", "tern", "completion", "f") == ["fish"]
    assert complete("bash", "tern", "soak", "--fault-e") == ["--fault-every"]
    assert complete("bash", "tern", "soak", "--max-model") == ["--max-model-len"]
    assert complete("bash", "tern", "bench", "overh") == ["overhead"]
    assert complete("bash", "tern", "bench", "context", "--quantization", "int4") == ["int4"]
    assert complete("bash", "tern", "bench", "context", "--kv-g") == ["--kv-gib"]


def test_every_command_is_offered() -> None:
    offered = set(complete("bash", "tern", ""))
    assert set(cli.COMMANDS) <= offered
    for name in cli.COMMANDS:
        assert f"-a '{name}'" in completion.fish() or f"-a {name} " in completion.fish()


def test_every_benchmark_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--help"], {}) == bench.main([], {}) == 0
    found = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M)
    assert set(found) == set(completion.OTHERS["bench"]) == {name.partition(" ")[2] for name in BENCH_NAMES}


def test_every_line_for_fish_is_a_command_that_shells_can_split() -> None:
    lines = [shlex.split(line) for line in completion.fish().splitlines()]
    assert all(words[:3] == ["complete", "-c", "tern"] for words in lines)
    [words] = [words for words in lines if "max-model-len" in words and words[4].endswith(" serve")]
    assert words[words.index("-l") + 1] == "max-model-len"
    assert words[-1].startswith("longest prompt plus answer")


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in completion.SHELLS:
        assert completion.main([shell], {}) == 0
        assert "tern" in capsys.readouterr().out
    with pytest.raises(StartupError, match="tern completion tcsh: expected one of bash, zsh, fish"):
        completion.main(["tcsh"], {})
