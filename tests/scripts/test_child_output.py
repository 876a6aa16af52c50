"""Lines of children as objects of one log."""

import io
import json
import os

from scripts.child_output import ChildOutput, as_object
from scripts.terminal import Terminal


def test_an_object_keeps_its_fields_and_text_becomes_a_message() -> None:
    told = json.loads(as_object(b'{"level":"error","seconds":2}\n', "worker 0", 7))
    assert told == {"level": "error", "seconds": 2, "process": "worker 0", "pid": 7}
    for raw, message in ((b"Traceback\n", "Traceback"), (b"\xff", "�"), (b"[1]", "[1]")):
        told = json.loads(as_object(raw, "worker 0", 7))
        assert (told["message"], told["level"], told["pid"]) == (message, "info", 7)
        assert told["time"].endswith("Z")


def test_a_pipe_is_read_to_its_end() -> None:
    out, (reader, writer) = io.StringIO(), os.pipe()
    output = ChildOutput("worker", 7, os.fdopen(reader, "rb"), out)
    os.write(writer, b"one\n\ntwo")
    os.close(writer)
    output.close()
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["one", "two"]


def test_what_the_supervisor_says_is_in_the_same_form() -> None:
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal({}, "info", out, err, as_json=True)
    terminal.log("warning", "worker was killed")
    terminal.log("debug", "quiet")
    terminal.show("a banner", message="ready", url="http://x")
    terminal.fail("no memory", "buy some")
    lines = [json.loads(line) for line in err.getvalue().splitlines()]
    assert out.getvalue() == ""
    assert [(line["level"], line["message"]) for line in lines] == [
        ("warning", "worker was killed"), ("info", "ready"), ("error", "no memory"),
    ]  # fmt: skip
    assert (lines[1]["url"], lines[2]["hint"]) == ("http://x", "buy some")
    assert {line["process"] for line in lines} == {"supervisor"}
