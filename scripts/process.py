"""One child process: spawned by module name, spoken to over its control channel, killed by its pidfd.

Knows nothing of policy: it says that a child is gone, and never starts another.

Children are spawned from the main thread, because the parent-death signal follows the thread that
started a process. Their standard output and error go to our standard error, see child_output.py for JSON.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.config import EngineCoreConfig, FrontendConfig, WorkerConfig
from protocol.control import (
    Failed,
    Ready,
    Start,
    SupervisorChannel,
    ToChild,
    ToSupervisor,
    channel_pair,
)
from protocol.errors import PROTOCOL_EXIT_CODE, OutOfMemory

from .child_output import ChildOutput
from .restart_policy import EXIT_CODES

TERMINAL_SIGNALS = {signal.SIGINT, signal.SIGHUP}

FAULT_SIGNALS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}
"""What a process brings upon itself; other signals come from outside."""

STDERR = 2

PACKAGES = Path(__file__).resolve().parent.parent
"""The folder that holds the packages: a checkout's root, or site-packages."""


class Command(Struct, frozen=True):
    """What to spawn: `python -m module arguments…` with this config."""

    name: str
    """For people: "worker 1"."""
    module: str
    config: FrontendConfig | EngineCoreConfig | WorkerConfig
    arguments: tuple[str, ...] = ()
    inherit: tuple[int, ...] = ()
    """Descriptors that stay open in the child, under the same numbers."""
    as_json: bool = False
    """What it writes is read, and written as the objects of a JSON log."""


class Child:
    """A running process. `reap` must be called once its pidfd is readable.

    Raises OSError, and leaves nothing, if it cannot be started.
    """

    def __init__(self, command: Command, *inherited: int) -> None:
        """`inherited`: the descriptor that the one before it has left, if it has."""
        self.name = command.name
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.lost = False
        """Its end of the channel is closed, although it may still run …"""
        self.kill_at: float | None = None
        """… until then; its interpreter may need a while to take itself apart."""
        self.overdue = False
        """It was killed after that."""
        self.charge = ""
        """For people, why we killed it while it served: "it made no progress for 2.3 s"."""
        self.row = command.config.progress_row
        self._process, self.channel = _spawn(command)
        self.pid = self._process.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self.channel.close()
            self._process.kill()
            self._process.wait()
            raise
        pipe = self._process.stdout
        self._output = None if pipe is None else ChildOutput(self.name, self.pid, pipe)
        self.channel.send(Start(command.config), *inherited)

    def send(self, message: ToChild) -> None:
        """A child that is gone, or no longer reads, is a matter for its pidfd."""
        self.channel.send(message)

    def receive(self) -> tuple[list[ToSupervisor], bool]:
        """What it has said since the last look, and whether that was its last word."""
        return drain(self.channel)

    def kill(self) -> None:
        """SIGKILL, which cannot hit a stranger: a pidfd is never reused as a pid is."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """It writes where its threads are to standard error."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def peek(self) -> int | None:
        """Its exit code if it has ended, which is left for `reap`; None while it runs."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def reap(self) -> int:
        """Wait for its end and release everything. Exit code, or minus the number of the signal.

        One that had closed its channel was on its way out by itself, however slowly: that counts as exit 1.
        """
        exit_code = self._process.wait()
        if self.overdue:
            exit_code = 1
        os.close(self.pidfd)
        self.channel.close()
        if self._output is not None:
            self._output.close()
        return exit_code


def drain(channel: SupervisorChannel) -> tuple[list[ToSupervisor], bool]:
    """Everything in the channel, and whether it has ended.

    A child that exits without having read all we sent leaves a reset, and the kernel reports that before
    what the child sent: the first end is not believed. Otherwise its `Failed` would be lost.
    """
    messages: list[ToSupervisor] = []
    ends = 0
    while ends < 2:
        try:
            message = channel.receive()
        except EOFError:
            ends += 1
        except msgspec.MsgspecError as error:
            messages.append(Failed("internal_error", f"said what is no control message: {error}"))
            return messages, True
        else:
            if message is None:
                return messages, False
            messages.append(message)
    return messages, True


def describe_exit(exit_code: int, charge: str = "") -> str:
    """For people: "was killed by SIGKILL (it made no progress for 2.3 s)"."""
    if exit_code < 0:
        text = f"was killed by {signal.Signals(-exit_code).name}"
        return f"{text} ({charge})" if charge else text
    meaning = EXIT_CODES.get(exit_code)
    return f"exited with code {exit_code}" + (f": {meaning}" if meaning else "")


def is_crash(exit_code: int) -> bool:
    """It ended by itself, so what it was doing may be the cause. False: it was killed, or asked to end, or
    the cause is known to be another (its link, or the memory for all that runs)."""
    if exit_code in (PROTOCOL_EXIT_CODE, OutOfMemory.exit_code):
        return False
    return exit_code > 0 or -exit_code in FAULT_SIGNALS


def _spawn(command: Command) -> tuple["subprocess.Popen[bytes]", SupervisorChannel]:
    ours, theirs = channel_pair()
    arguments = [sys.executable, "-P", "-m", command.module, *command.arguments]
    arguments += ["--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    inherit = (theirs.fileno(), *command.inherit)
    if command.config.progress_fd >= 0:
        inherit += (command.config.progress_fd,)
    # A child inherits the mask. Without it, a Ctrl-C before the child's first line would print its traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=STDERR if not command.as_json else subprocess.PIPE,
            stderr=None if not command.as_json else subprocess.STDOUT,
            pass_fds=inherit,
            env=packages_environment(),
        )
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
    return process, ours


def packages_environment() -> dict[str, str]:
    """Ours; and a checkout's packages are found whether or not they are installed.

    `-P` keeps the current folder out of the child's path: someone's own `worker/` may lie in it.
    """
    environment = dict(os.environ)
    if (PACKAGES / "pyproject.toml").is_file():
        paths = [str(PACKAGES), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
