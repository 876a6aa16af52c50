"""A SIGHUP from a terminal that is gone is not one from an operator."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from tests.scripts.conftest import StartFakes

SESSION = """
import signal, sys
from scripts.hangup import Hangup
if {nohup}: signal.signal(signal.SIGHUP, signal.SIG_IGN)
hangup = Hangup()
signal.signal(signal.SIGHUP, signal.SIG_IGN)
for line in sys.stdin:
    print(hangup.meaning().name, flush=True)
"""


@pytest.mark.parametrize(("nohup", "meaning"), [(False, "STOP"), (True, "GO_ON")])
def test_the_terminal_is_lost_once(nohup: bool, meaning: str) -> None:
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, "-c", SESSION.format(nohup=nohup)], cwd=ROOT, text=True, preexec_fn=take_terminal,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            print("?", file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        assert ask() == "ROLL"
        os.close(theirs)
        os.close(ours)
        assert ask() == meaning
        assert ask() == "ROLL"
        process.stdin.close()
    assert process.returncode == 0


def test_without_a_terminal_there_is_none_to_lose(start: "StartFakes") -> None:
    stack = start()
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_for("replacing the frontends")
    assert stack.ends(signal.SIGTERM) == 0
