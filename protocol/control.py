"""Supervisor ↔ child: the control channel, and the first lines of every child process.

The channel is a SOCK_SEQPACKET socketpair, one msgpack message per packet, inherited by descriptor.
End of file means that the other side died. It carries no work, so it never queues behind any.
"""

import argparse
import ctypes
import faulthandler
import os
import signal
import socket
import sys
from array import array
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from .config import EngineCoreConfig, FrontendConfig, WorkerConfig
from .errors import StartupError
from .hardening import harden
from .messages import EngineStats

In = TypeVar("In")
Out = TypeVar("Out")
Config = TypeVar("Config")

MAX_PACKET_BYTES = 64 << 10
_ROOM_BESIDE = socket.CMSG_LEN(array("i").itemsize)
"""Of a packet: for a descriptor. (socket.recv_fds and send_fds take flags, and ignore them.)"""
OOM_SCORE_ADJ: dict[type[Any], int] = {FrontendConfig: 500, EngineCoreConfig: 300, WorkerConfig: 0}
"""Who goes first when memory runs out: what costs least to start again."""


# ── supervisor → child ──────────────────────────────────────────────────────────────────────────


class Start(Struct, frozen=True, tag="start"):
    """First packet: everything the child needs to know."""

    config: FrontendConfig | EngineCoreConfig | WorkerConfig


class EngineAt(Struct, frozen=True, tag="engine_at"):
    """An engine core has bound its sockets. Connect to it, and forget any earlier one."""

    incarnation: int
    clients_endpoint: str
    workers_endpoint: str


class PeerGone(Struct, frozen=True, tag="peer_gone"):
    """A supervised frontend or worker of this incarnation has died."""

    incarnation: int
    crashed: bool = False
    """By itself (an exit, a fault signal): what it was doing may be the cause. False: it was killed."""
    cause: str = ""
    """For people: "was killed by SIGSEGV"."""


class Drain(Struct, frozen=True, tag="drain"):
    """Take no new work; finish what is open within the time, then exit."""

    timeout_s: float


class Retire(Struct, frozen=True, tag="retire"):
    """To a frontend whose successor serves already: accept no more connections, finish what is open, exit."""


class Quit(Struct, frozen=True, tag="quit"):
    """Exit now."""


ToChild = Start | EngineAt | PeerGone | Drain | Retire | Quit


# ── child → supervisor ──────────────────────────────────────────────────────────────────────────


class Phase(Struct, frozen=True, tag="phase"):
    """A step of starting up, for the progress display. `fraction` is None when unknown."""

    name: str
    detail: str = ""
    fraction: float | None = None


class Ready(Struct, frozen=True, tag="ready"):
    """The child serves. `facts` are for the banner."""

    facts: dict[str, str] = {}


class Busy(Struct, frozen=True, tag="busy"):
    """From the engine core, every few seconds for which it has had work: what it did in them."""

    seconds: float
    before: EngineStats
    now: EngineStats


class Failed(Struct, frozen=True, tag="failed"):
    """The root cause, sent just before the child exits by itself."""

    code: str
    message: str
    hint: str = ""
    exit_code: int = 1

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """What ends a child; its traceback, if it is of interest, goes to standard error."""
        if isinstance(error, StartupError):
            return cls(error.code, error.message, error.hint, error.exit_code)
        return cls("internal_error", f"{type(error).__name__}: {error}"[:4096])


class Keep(Struct, frozen=True, tag="keep"):
    """Comes with a descriptor: what the process that takes this one's place is to get with its Start."""


ToSupervisor = Phase | Ready | Failed | Busy | Keep


class Channel(Generic[In, Out]):
    """One end of a control channel. A packet may bring a descriptor."""

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self.socket = sock
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._descriptor = -1
        """That came last, and was not taken."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Out, *descriptors: int) -> bool:
        """Send at once, with one descriptor at most. False: the other side is gone or does not read."""
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            self.socket.sendmsg([msgspec.msgpack.encode(message)], beside, flags)
        except OSError:
            return False
        return True

    def receive(self, *, wait: bool = False) -> In | None:
        """Next message; None when there is none (without `wait`). Raises EOFError at the other side's end."""
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            packet, beside, *_ = self.socket.recvmsg(MAX_PACKET_BYTES, _ROOM_BESIDE, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if not packet:
            raise EOFError
        for *_, descriptor in beside:
            self._close_untaken()
            self._descriptor = int.from_bytes(descriptor, sys.byteorder)
        message: In = self._decoder.decode(packet)
        return message

    def take(self) -> int:
        """The descriptor that came last, which is the caller's from now on; -1: there is none."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        self._close_untaken()
        self.socket.close()

    def _close_untaken(self) -> None:
        if (descriptor := self.take()) >= 0:
            os.close(descriptor)


ChildChannel = Channel[ToChild, ToSupervisor]
SupervisorChannel = Channel[ToSupervisor, ToChild]


def channel_pair() -> tuple[SupervisorChannel, socket.socket]:
    """(the supervisor's end, the socket whose descriptor the child inherits)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return Channel(ours, ToSupervisor), theirs


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to SIGKILL this process when its parent dies, however that happens.

    The signal follows the parent's *thread* that started us, which is therefore always its main thread.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def enter(config_type: type[Config]) -> tuple[ChildChannel, Config]:
    """First call of a child's main: tie our life to the parent's, harden, then receive the config.

    Signals that stop a server often go to all of its processes (a terminal's to the process group, a
    service manager's to the whole service), but only the supervisor acts on them. SIGUSR1 makes this
    process write the stacks of its threads to standard error, whatever it is doing.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    die_with_parent(arguments.parent)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)
    harden(OOM_SCORE_ADJ[config_type])
    channel: ChildChannel = Channel(socket.socket(fileno=arguments.control_fd), ToChild)
    start = channel.receive(wait=True)
    if not isinstance(start, Start) or not isinstance(start.config, config_type):
        raise TypeError(f"the first packet must be Start with a {config_type.__name__}")
    return channel, start.config
