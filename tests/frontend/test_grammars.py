"""The door for grammars: hostile ones touch nothing, helpers die and come back, and none is there unasked."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontend import grammars as door
from frontend.grammar_messages import JsonStyle, Kind
from frontend.grammar_texts import make_text
from frontend.grammars import Grammars
from protocol.errors import InternalError, InvalidRequest, Overloaded
from protocol.grammar import GrammarReader
from protocol.messages import EngineFacts
from tests.frontend.hostile_grammars import HOSTILE, schema

MODEL = str(Path(__file__).parents[2] / "models" / "tern-mini")
FACTS = EngineFacts("tern-mini", 2048, 512, 16, 100, (2,), 16)
GOOD: list[tuple[Kind, str]] = [
    ("json_schema", '{"type": "object"}'),
    ("json_schema", "true"),
    schema({"type": "object", "properties": {"nullable": {"type": "string"}}}),
    schema({"enum": [str(i) for i in range(5000)]}),
    schema({"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}),
    ("regex", "(0|1[0-9]*)"),
    ("choice", '["yes", "no", "a \\"quoted\\" one", "日本"]'),
    ("grammar", 'start: "a" | "b" start'),
    ("grammar", 'root ::= "a" | "b" root'),
    (
        "structural_tag",
        json.dumps({"structures": [{"begin": "<f=x>", "schema": {}, "end": "</f>"}], "triggers": ["<f="]}),
    ),
]


@pytest.fixture(scope="module")
def reader() -> GrammarReader:
    return GrammarReader(MODEL, FACTS.vocab_size, FACTS.eos_token_ids)


@pytest.fixture
async def grammars() -> Any:
    found = Grammars(MODEL)
    yield found
    found.close()


def helpers() -> list[int]:
    """Pids of this process's helpers."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True)
    lines = listed.stdout.decode().splitlines()
    return [int(line.split()[0]) for line in lines if "frontend.grammar_helper" in line]


async def stop(pid: int) -> None:
    """SIGSTOP, and wait: the thread that takes the signal has to run before all of them stand still."""
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: set(states(pid)) == {"T"})


def states(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "-L", "-o", "state=", "-p", str(pid)], capture_output=True)
    return listed.stdout.decode().split()


async def until(condition: Callable[[], bool]) -> None:
    """Fails by the test's own limit."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def verdict(grammars: Grammars, kind: Kind, source: str) -> str:
    try:
        await grammars.compile(kind, source, FACTS, "field")
    except InvalidRequest as error:
        named = error.param == "field" and error.message.startswith("field: ")
        return "refused" if named and len(error.message) < 500 else error.message
    return "let in"


async def test_hostile_ones_are_refused_and_touch_nothing(grammars: Grammars) -> None:
    assert len(HOSTILE) >= 48
    for name, (kind, source) in HOSTILE.items():
        assert await verdict(grammars, kind, source) == "refused", name
    assert await grammars.compile(*GOOD[0], FACTS, "field")
    assert len(helpers()) == 1, "helpers are used again"


async def test_good_ones_are_read_the_same_in_the_engine_core(
    grammars: Grammars, reader: GrammarReader
) -> None:
    for kind, source in GOOD:
        reader.read(await grammars.compile(kind, source, FACTS, "field")).mask()


async def test_known_ones_need_no_helper(grammars: Grammars) -> None:
    assert helpers() == [], "nobody has asked yet"
    first = await grammars.compile(*GOOD[0], FACTS, "field")
    (pid,) = helpers()
    await stop(pid)
    assert await grammars.compile(*GOOD[0], FACTS, "field") == first
    os.kill(pid, signal.SIGCONT)


async def test_idle_helpers_end(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "IDLE_S", 0.05)
    await grammars.compile(*GOOD[0], FACTS, "field")
    await until(lambda: not helpers())
    assert await grammars.compile(*GOOD[5], FACTS, "field")


@pytest.mark.parametrize("kills", [1, 2])
async def test_a_killed_helper_is_replaced_once(grammars: Grammars, kills: int) -> None:
    """Stopped first, so that it is certainly killed in the middle of this grammar."""
    await grammars.compile(*GOOD[0], FACTS, "field")
    (pid,) = helpers()
    await stop(pid)
    compiling = asyncio.create_task(grammars.compile(*GOOD[5], FACTS, "field"))
    await asyncio.sleep(0)
    assert await grammars.compile(*GOOD[6], FACTS, "field"), "others have helpers of their own"
    (second,) = set(helpers()) - {pid}
    if kills == 2:
        await stop(second)
    os.kill(pid, signal.SIGKILL)
    if kills == 2:
        await until(lambda: not grammars._idle)  # the second has it now
        os.kill(second, signal.SIGKILL)
    if kills == 1:
        assert await compiling
    else:
        with pytest.raises(InternalError, match="killed twice"):
            await compiling
    assert await grammars.compile(*GOOD[7], FACTS, "field")


async def test_a_helper_that_dies_of_a_grammar_is_not_asked_again(grammars: Grammars) -> None:
    await grammars.compile(*GOOD[0], FACTS, "field")
    (pid,) = helpers()
    await stop(pid)
    compiling = asyncio.create_task(grammars.compile(*GOOD[5], FACTS, "field"))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(InvalidRequest, match="field: it needs too much memory or is nested too deeply"):
        await compiling


async def test_whoever_takes_too_long_is_killed(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    await grammars.compile(*GOOD[0], FACTS, "field")
    monkeypatch.setattr(door, "JUDGE_S", 0.001)
    (pid,) = helpers()
    with pytest.raises(InvalidRequest, match="field: it takes too long to read"):
        await grammars.compile(*HOSTILE["a quarter of a million letters"], FACTS, "field")
    assert pid not in helpers()


async def test_it_has_no_more_memory_than_it_may(grammars: Grammars) -> None:
    await grammars.compile(*GOOD[0], FACTS, "field")
    assert resource.prlimit(helpers()[0], resource.RLIMIT_AS) == (1 << 30, 1 << 30)


async def test_more_at_once_than_helpers(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [schema({"type": "string", "maxLength": i}) for i in range(1, 13)]
    assert all(await asyncio.gather(*(grammars.compile(*one, FACTS, "field") for one in sources)))
    assert len(helpers()) <= door.MOST_HELPERS
    monkeypatch.setattr(door, "MOST_WAITING", 0)
    with pytest.raises(Overloaded):
        await grammars.compile("regex", "abc", FACTS, "field")


async def test_a_cancelled_question_leaves_no_helper_behind(grammars: Grammars) -> None:
    await grammars.compile(*GOOD[0], FACTS, "field")
    (pid,) = helpers()
    await stop(pid)
    compiling = asyncio.create_task(grammars.compile(*GOOD[5], FACTS, "field"))
    await asyncio.sleep(0)
    compiling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await compiling
    assert await grammars.compile(*GOOD[5], FACTS, "field")
    assert pid not in helpers()


def test_it_dies_with_its_frontend() -> None:
    """Whatever kills the frontend."""
    code = (
        "import asyncio, os, sys\n"
        "from frontend.grammars import Grammars\n"
        "from tests.frontend.test_grammars import FACTS, MODEL, helpers\n"
        "async def main():\n"
        "    await Grammars(MODEL).compile('regex', 'a', FACTS, 'field')\n"
        "    print(helpers()[0], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=90, cwd=Path(__file__).parents[2])
    pid = int(done.stdout)
    while Path(f"/proc/{pid}").exists():  # fails by the test's own limit
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True).stdout
        if not state or state.startswith(b"Z"):
            break


def test_json_may_be_written_with_or_without_whitespace(reader: GrammarReader) -> None:
    source = '{"type": "array", "items": {"type": "integer"}}'
    loose, tight = JsonStyle(), JsonStyle(whitespace=False)
    assert reader.read(make_text("json_schema", source, loose)).mask() != b""
    open_bracket = reader.read(make_text("json_schema", source, tight)).take_forced()
    assert open_bracket, "without whitespace the bracket is forced"
