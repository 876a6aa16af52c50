"""The real registry as a simulated process, and the users whose streams it holds."""

import math
from collections.abc import Callable
from functools import partial

from protocol.messages import ClientMessage, EngineMessage
from protocol.registry import Registry
from protocol.stream import Parting, TokenStream

from .network import Agenda, Connection
from .process import TURN_S, Process
from .users import User

_LOOK_AGAIN_S = 1.0


class Frontend(Process):
    """The real registry, and the users whose streams it holds."""

    kind = "frontend"

    def __init__(
        self, agenda: Agenda, incarnation: int, on_exit: Callable[[Process, int], object], index: int
    ) -> None:
        super().__init__(agenda, incarnation, on_exit)
        self.index = index
        self.registry = Registry(f"frontend {index}", incarnation, self._close_stream)
        self.users: dict[int, User] = {}
        """By request id: those whose stream is open."""
        self.connection: Connection | None = None
        self.on_silence: Callable[[Frontend, list[ClientMessage]], object] = lambda frontend, messages: None
        """These are sent because nothing has come for too long."""
        self.on_end: Callable[[Frontend, User], object] = lambda frontend, user: None
        """The user's stream has had its last message."""
        self._inbox: list[EngineMessage] = []
        self._todo: list[Callable[[], object]] = []
        self._look_at = math.inf
        self._retiring = False

    def retire(self) -> None:
        """Exit as soon as no stream is open. Whoever is about to submit still may."""
        self._retiring = True
        self.wake(self.agenda.now + TURN_S)

    def connect(self, connection: Connection) -> None:
        """As EngineClient.reattach, once it takes its turn."""
        self.do(partial(self._connect, connection))

    def do(self, what: Callable[[], object]) -> None:
        """In its next turn."""
        self._todo.append(what)
        self.wake(self.agenda.now + TURN_S)

    def arrive(self, message: EngineMessage) -> None:
        self._inbox.append(message)
        self.wake(self.agenda.now + TURN_S)

    def submit(self, user: User) -> None:
        """To be called in a turn."""
        if user.outcome:
            return
        task = user.task
        user.stream, messages = self.registry.submit(
            task.prompt,
            task.sampling,
            self.agenda.now,
            priority=user.priority,
            timeout_s=user.timeout_s,
            tenant=user.tenant,
            cache_salt=user.cache_salt,
            adapter=task.adapter,
            key=user.key,
            digest=user.digest,
            grammar=task.grammar,
            embed=task.embed,
        )
        self.users[user.stream.request_id] = user
        self._send(messages)

    def leave(self, user: User, *, detach: bool) -> None:
        """The user's connection is closed. To be called in a turn."""
        stream = user.stream
        if stream is not None and self.users.get(stream.request_id) is user:
            del self.users[stream.request_id]
            user.left()
            stream.close(Parting.DETACH if detach else Parting.ABORT)

    @property
    def idle(self) -> bool:
        """All that has arrived was taken."""
        return not self._inbox and not self._todo

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def turn(self) -> None:
        now = self.agenda.now
        todo, self._todo = self._todo, []
        for what in todo:
            what()
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            self._send(self.registry.handle(message, now))
        if now >= self._look_at:
            self._look_at = math.inf
            messages = self.registry.stalled(now)
            self.on_silence(self, messages)
            self._send(messages)
        streams = self.registry.streams
        if len(streams) != len(self.users):
            for request_id in [one for one in self.users if one not in streams]:
                user = self.users.pop(request_id)
                if user.outcome:
                    continue  # it left before its end came
                user.read(now)
                self.on_end(self, user)
                self.agenda.note(f"{user.name}: {user.outcome}".encode())
        assert streams.keys() == self.users.keys()
        if self._look_at == math.inf and self.connection is not None and self.registry.waiting:
            self._look_at = now + _LOOK_AGAIN_S
        if self._look_at < math.inf:
            self.wake(self._look_at)
        if self._retiring and not self.users and self.idle:
            self.exit(0)

    def _connect(self, connection: Connection) -> None:
        if not connection.open:
            return
        self.close()
        self.connection = connection
        self._inbox.clear()
        self._send(self.registry.attach(self.agenda.now))

    def _send(self, messages: list[ClientMessage]) -> None:
        for message in messages:
            self.count_send()
            if self.connection is not None and self.connection.open:
                self.connection.up.send(message)

    def _close_stream(self, stream: TokenStream, parting: Parting) -> None:
        self._send(self.registry.close(stream, parting))
