"""What a start says: phases, the banner, the curl line."""

import io
import json
import shlex
from collections.abc import Iterator

import pytest
from msgspec import structs

from protocol.control import Phase
from scripts.startup import Memory, Progress, Serving, banner, curl
from scripts.terminal import Terminal


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


SERVING = Serving(
    version="1.2.3",
    url="http://[::1]:80",
    model_name="o'brien",
    has_api_key=True,
    endpoint_file="/run/x/endpoint",
)
MEMORY = Memory(10 << 30, 16 << 30)
FACTS = {
    "model": "m", "device": "cpu", "dtype": "float32", "num_blocks": "4096", "block_size": "16",
    "max_model_len": "2048", "weights_bytes": str(12 << 20), "kv_bytes": str(3 << 29),
    "kv_groups": "1", "least_kv_tokens": "65536", "most_kv_tokens": "65536",
}  # fmt: skip


def test_the_banner_has_all_that_was_started() -> None:
    pids = {"supervisor": [1], "worker": [2, 3]}
    text = banner(SERVING, FACTS, pids, "Tern is ready in 1.0 s", MEMORY)
    for part in (
        "Tern is ready in 1.0 s",
        "o'brien (float32 on cpu, 12.0 MiB of weights)",
        "4,096 blocks of 16 tokens = 65,536 tokens (1.5 GiB)",
        "2,048 tokens",
        "http://[::1]:80/   http://[::1]:80/live",
        "http://[::1]:80/v1",
        "supervisor 1 · worker 2 3",
        "/run/x/endpoint",
        "  memory    weights     12.0 MiB\n",
        "            KV cache     1.5 GiB\n",
        "            free         8.5 GiB  of 16.0 GiB, when the KV cache is full\n",
        curl(SERVING),
    ):
        assert part in text
    assert "/live" not in banner(structs.replace(SERVING, has_playground=False), FACTS, pids, "", MEMORY)


def test_the_banner_says_how_much_sliding_windows_leave() -> None:
    facts = {**FACTS, "kv_groups": "7", "least_kv_tokens": "9360", "most_kv_tokens": "61440"}
    text = banner(SERVING, facts, {}, "", MEMORY)
    assert "4,096 blocks of 16 tokens of one in 7 groups of layers = 9,360 to 61,440 tokens (1.5 GiB)" in text


def test_the_curl_line_survives_a_shell() -> None:
    words = shlex.split(curl(SERVING))
    assert words[:3] == ["curl", "-N", "http://[::1]:80/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "o'brien"
    assert body["stream"] is True
    assert "Authorization: Bearer $TERN_API_KEY" in words


def lines(err: io.StringIO) -> Iterator[str]:
    return (line.partition(" tern: ")[2] for line in err.getvalue().splitlines())


def test_plain_output_has_one_line_per_phase() -> None:
    err = io.StringIO()
    progress = Progress(Terminal({}, out=io.StringIO(), err=err), 0)
    progress.on_phase("worker", Phase("importing torch"), 1)
    progress.on_phase("worker", Phase("loading weights", "1 of 2", 0.5), 3)
    progress.on_phase("worker", Phase("loading weights", "2 of 2", 1.0), 3.5)
    progress.on_done("worker", 4)
    assert list(lines(err)) == ["worker: importing torch", "worker: loading weights 1 of 2"]
    assert progress.summary(5) == "5.0 s (worker importing torch 2.0 s, worker loading weights 1.0 s)"


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    err = Screen()
    terminal = Terminal({}, out=io.StringIO(), err=err)
    progress = Progress(terminal, 0)
    progress.on_phase("worker", Phase("loading weights", "", 0.5), 1)
    assert "\n" not in err.getvalue()
    assert err.getvalue().count("\r") == 1
    assert "[==========          ]  50%" in err.getvalue()
    progress.on_phase("worker", Phase("loading weights", "", 0.75), 1.01)
    assert err.getvalue().count("\r") == 1, "a line that nobody could read"
    progress.on_phase("worker", Phase("loading weights", "", 1.0), 2)
    assert "100%" in err.getvalue()
    terminal.log("info", "next")
    assert err.getvalue().endswith("tern: next\n")


@pytest.mark.parametrize(
    ("environ", "screen", "coloured"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({}, False, False)],
)
def test_colour_only_where_it_is_wanted(environ: dict[str, str], screen: bool, coloured: bool) -> None:
    err = Screen() if screen else io.StringIO()
    Terminal(environ, out=io.StringIO(), err=err).fail("broken")
    assert ("\x1b[31m" in err.getvalue()) is coloured
    assert "broken" in err.getvalue()


def test_a_narrow_terminal_cuts_the_text_and_not_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    err = Screen()
    Terminal({}, out=io.StringIO(), err=err).progress("x" * 100, 0.25)
    assert err.getvalue().removeprefix("\r\x1b[K") == "x" * 11 + " [=====               ]  25%"


def test_a_root_cause_is_one_line() -> None:
    err = io.StringIO()
    Terminal({}, out=io.StringIO(), err=err).fail("first\n  second", "do this")
    assert err.getvalue() == "tern: error: first second (do this)\n"


def test_the_level_of_the_log() -> None:
    err = io.StringIO()
    terminal = Terminal({}, "warning", out=io.StringIO(), err=err)
    terminal.log("info", "quiet")
    terminal.log("warning", "loud")
    assert list(lines(err)) == ["loud"]


def test_a_reader_that_has_gone_away_is_no_error() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Terminal({}, out=Gone(), err=Gone()).show("anyone?")


def test_the_memory_of_gpus_is_not_the_machines() -> None:
    text = banner(SERVING, {**FACTS, "device": "NVIDIA H100"}, {}, "ready", MEMORY)
    assert "(float32 on NVIDIA H100, 12.0 MiB of weights)" in text
    assert "of the GPUs" in text
    assert "when the KV cache is full" not in text
