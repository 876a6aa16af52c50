"""WorkerGroup: the engine core's end of the link to the workers. Knows nothing of requests.

A group announces itself with WorkerReady; each announcement begins a new epoch, which the group is told
with Reset. Whatever carries another epoch is stale: dropped and counted.
"""

from typing import Protocol, assert_never

from protocol.messages import PROTOCOL_VERSION, EngineFacts
from protocol.sockets import fingerprint
from protocol.steps import (
    EngineToWorker,
    Profile,
    Reset,
    StepFailed,
    StepMasks,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerReply,
    WorkerToEngine,
)

_EPOCH_BITS = 20
"""Epochs of one engine core; the 43 bits above them hold its incarnation."""

WorkerEvent = WorkerReady | StepResult | StepFailed | WorkerReply


class WorkerLink(Protocol):
    """The engine core's end of the link to its workers."""

    dropped_frames: int

    def drain(self) -> list[tuple[bytes, WorkerToEngine]]:
        """What has arrived, with the peers that sent it."""

    def send(self, peer: bytes, message: EngineToWorker) -> bool:
        """Queue a message. False: the peer is gone, or has stopped consuming."""


class WorkerGroup:
    """At most one group is attached; a newer one takes the place of an older."""

    def __init__(self, link: WorkerLink, incarnation: int) -> None:
        self.link = link
        self.epoch = incarnation << _EPOCH_BITS  # all epochs of engine core n are above those of n-1
        self.facts: EngineFacts | None = None
        self.num_epochs = 0
        self.stale_messages = 0
        self.refused = 0
        self.cut = False
        """A message could not be sent. Either the group has died, which the supervisor will say, or only the
        link has, and then nothing will ever come of it."""
        self._peer = b""
        self._incarnation = -1

    @property
    def attached(self) -> bool:
        """Whether plans can be sent."""
        return bool(self._peer) and not self.cut

    def receive(self) -> list[WorkerEvent]:
        """What has arrived in the current epoch. A WorkerReady has already been answered with Reset."""
        events: list[WorkerEvent] = []
        for peer, message in self.link.drain():
            match message:
                case WorkerReady():
                    if self._accept(peer, message):
                        events.append(message)
                case StepResult() | StepFailed():
                    if peer == self._peer and message.epoch == self.epoch:
                        events.append(message)
                    else:
                        self.stale_messages += 1
                case WorkerReply():
                    events.append(message)
                case _:
                    assert_never(message)
        return events

    def _accept(self, peer: bytes, ready: WorkerReady) -> bool:
        if (ready.protocol_version, ready.fingerprint) != (PROTOCOL_VERSION, fingerprint()):
            self.refused += 1
            return False
        self._peer, self.cut = peer, False
        self._incarnation = ready.incarnation
        self.facts = ready.facts
        self.begin_epoch()
        return True

    def begin_epoch(self) -> None:
        """Make the group forget every sequence."""
        self.epoch += 1
        self.num_epochs += 1
        self._send(Reset(self.epoch))

    def dispatch(self, plan: StepPlan | StepMasks) -> None:
        """Send a plan. If the group is gone, so is the plan: its successor will begin a new epoch."""
        self._send(plan)

    def profile(self, nonce: int, start: bool) -> bool:
        """Ask for a trace; answered by a WorkerReply."""
        return self._send(Profile(nonce, start))

    def lost(self, incarnation: int) -> bool:
        """The supervisor reports a death. True if it was the attached group."""
        if incarnation != self._incarnation:
            return False
        self._peer, self.cut, self._incarnation = b"", False, -1
        return True

    def _send(self, message: EngineToWorker) -> bool:
        if not self._peer:
            return False
        self.cut = self.cut or not self.link.send(self._peer, message)
        return not self.cut
