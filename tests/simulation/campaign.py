"""Hours of a simulated server's life from one seed: bursts of users, faults among them, and what must hold.

    burst ── users come, some go early, some come again ──┐
          ── faults: kills, hangs, failed steps ──────────┴─▶ … ▶ faults stop ▶ all ends ▶ nothing is left

Each choice is drawn from the seed, so that a seed is a whole history.
"""

import math
from dataclasses import replace
from functools import partial
from random import Random

from engine_core.request import Request
from protocol.kv_groups import blocks_of
from protocol.options import CacheOptions, SchedulerOptions
from worker.kv_layout import Window, lay_out

from .cluster import Cluster, Settings
from .frontend_process import Frontend
from .network import Agenda, Weather
from .users import MAX_MODEL_LEN, MODEL, Evidence, Mark, User, make_task

REQUEST_EVERY_S = 20.0
_NUM_TASKS, _NUM_CONSTRAINED, _NUM_EMBEDDINGS = 40, 6, 4
_LIVENESS_S = 600.0
"""Within which everything ends once the faults have: a stream that has waited long looks every 60 s."""
_RETRY_S = 0.1
_MOST_EVENTS = 2_000_000
"""Of a life: some hours bring a tenth of it."""
_WINDOWS: list[tuple[Window, ...]] = [(None,), (None,), (11,), (21, 21, None)]
"""Of the model's layers: half of the servers have sliding windows."""
_TIGHT = 100
"""A queue shorter than this may refuse at the door."""


class Campaign:
    """Run it, then read its counters."""

    def __init__(self, seed: int, **changes: object) -> None:
        """`changes` replace fields of the drawn settings."""
        self.seed = seed
        self.draw = draw = Random(seed)
        self.agenda = Agenda()
        settings = _draw_settings(draw)
        for name, value in changes.items():
            setattr(settings, name, value)
        self.settings = settings
        windows = settings.windows
        self.tasks = [make_task(draw, windows) for _ in range(_NUM_TASKS)]
        if settings.tokenizer:
            self.tasks += [make_task(draw, windows, kind="grammar") for _ in range(_NUM_CONSTRAINED)]
        self.answers = list(self.tasks)
        self.tasks += [make_task(draw, windows, kind="embed") for _ in range(_NUM_EMBEDDINGS)]
        self.marked = [make_task(draw, windows, mark) for mark in Mark for _ in range(2)]
        self.marked.append(make_task(draw, windows, Mark.NAN, kind="embed"))
        if settings.tokenizer:
            self.marked += [make_task(draw, windows, mark, kind="grammar") for mark in Mark]
        self.users: dict[User, Frontend | None] = {}
        """Who has come since the last burst, or is still there, and where."""
        self.faults: dict[str, int] = {}
        self.outcomes: dict[str, int] = {}
        self.storm = draw.random() < 0.3
        """Many faults, close together."""
        self.cluster = Cluster(self.agenda, draw, settings)
        self.cluster.on_frontend_gone = self._on_frontend_gone
        self.cluster.on_trouble = self._on_trouble
        self.clear = settings.weather.is_clear
        self._names = 0
        self._evidence: dict[tuple[str, str], Evidence] = {}
        """By tenant and key: such a request may be hit while nobody is there for it."""

    def run(self, hours: float) -> None:
        """Live so long; then the faults stop, everything must end, and nothing may be left."""
        end = hours * 3600
        self._next_burst(end)
        self.agenda.run(end)
        self._calm()
        limit = self.agenda.now + _LIVENESS_S
        while self.open_users and self.agenda.now < limit:
            self.agenda.run(self.agenda.now + 1)
        waiting = ", ".join(user.name for user in self.open_users)
        assert not waiting, f"{waiting} still wait {_LIVENESS_S:g} s after the last fault"
        self._count_outcomes()
        self.agenda.run(self.agenda.now + 60 + self.settings.detach_grace_s)
        self._check_end()
        self._stop()

    @property
    def open_users(self) -> list[User]:
        return [user for user in self.users if not user.outcome]

    # ── load ────────────────────────────────────────────────────────────────────────────────────

    def _next_burst(self, end: float) -> None:
        size = self.draw.choice([1, 4, 16, 30, 60])
        start = self.agenda.now + size * REQUEST_EVERY_S * self.draw.expovariate(1)
        if start < end - 60:
            self.agenda.at(start, b"burst", partial(self._burst, size, end))

    def _burst(self, size: int, end: float) -> None:
        self._count_outcomes()
        assert self.agenda.num_events < _MOST_EVENTS, "it does nothing, again and again"
        for _ in range(size):
            self.agenda.after(self.draw.expovariate(1), b"user", self._come)
        num_faults = self.draw.choice([0, 1, 1, 2, 3, 12 if self.storm else 4])
        for _ in range(num_faults):
            self.agenda.after(self.draw.random() * (1.5 + size / 20), b"fault", self._fault)
        self._next_burst(end)

    def _come(self) -> None:
        draw = self.draw
        self._names += 1
        task = draw.choice(self.marked if draw.random() < 0.015 else self.tasks)
        user = User(
            name=f"user {self._names} of seed {self.seed}",
            task=task,
            began=self.agenda.now,
            timeout_s=draw.choice([0.05, 0.5, 3.0]) if draw.random() < 0.1 else None,
            key=f"key {self._names}" if draw.random() < 0.3 and not task.embed else "",
            digest="digest",
            tenant=draw.choice(["a", "a", "b"]),
            cache_salt=draw.choice(["", "", "salt"]),
            priority=draw.choice([0, 0, 0, 1]),
            strays=self.settings.weather.strays,
            tight=self.settings.scheduler.max_num_waiting < _TIGHT,
        )
        self._evidence[user.tenant, user.key] = user.evidence
        self._enter(user)
        chance = draw.random()
        if chance < 0.08:
            self.agenda.after(draw.expovariate(2), b"abort", partial(self._abort, user))
        elif user.key and chance < 0.4:
            self.agenda.after(draw.expovariate(2), b"detach", partial(self._detach, user))
        elif user.key and chance < 0.5:
            self.agenda.after(draw.expovariate(2), b"twin", partial(self._twin, user))

    def _enter(self, user: User) -> None:
        """Come to any frontend that listens; while none does, wait."""
        self.users.setdefault(user, None)
        there = [one for one in self.cluster.frontends if one is not None and one.ready]
        if user.outcome:
            return
        if not there:
            self.agenda.after(_RETRY_S, b"retry", partial(self._enter, user))
            return
        frontend = self.users[user] = self.draw.choice(there)
        frontend.do(partial(frontend.submit, user))

    def _abort(self, user: User) -> None:
        if not user.outcome:
            user.end("aborted")
            self._leave(user, detach=False)

    def _leave(self, user: User, *, detach: bool) -> None:
        frontend = self.users.get(user)
        if frontend is not None and frontend.alive:
            frontend.do(partial(frontend.leave, user, detach=detach))

    def _detach(self, user: User) -> None:
        """Its connection breaks. It comes again, perhaps before its frontend has seen that."""
        if user.outcome:
            return
        late = self.draw.random() < 0.2
        user.end("left")
        self.agenda.after(0.5 if late else 0.0, b"leave", partial(self._leave, user, detach=True))
        self._come_again(user, contested=late)

    def _come_again(self, user: User, *, contested: bool) -> None:
        contested = contested or user.contested or user.strays  # an old Submit may take the request back
        again = replace(user, stream=None, outcome="", contested=contested, name=user.name + "'")
        self.agenda.after(self.draw.choice([0.001, 0.2, 5, 40]), b"again", partial(self._enter, again))

    def _twin(self, user: User) -> None:
        """Somebody else takes the same key for something else."""
        if not user.outcome:
            user.contested = True
            name, task = user.name + " (twin)", self.draw.choice(self.answers)
            self._enter(replace(user, stream=None, name=name, digest="another", task=task))

    def _on_frontend_gone(self, frontend: Frontend) -> None:
        for user in [user for user, where in self.users.items() if where is frontend and not user.outcome]:
            user.end("reset")
            user.left()
            if user.key:
                self._come_again(user, contested=False)

    def _on_trouble(self, requests: list[Request], by_itself: bool) -> None:
        for request in requests:
            if request.key:
                found = [self._evidence[request.tenant, request.key]]
            else:
                found = [user.evidence for user in self.users if self._is_of(request, user)]
            for evidence in found:
                evidence.add(by_itself=by_itself, alone=len(requests) == 1)

    def _is_of(self, request: Request, user: User) -> bool:
        frontend = self.users[user]
        if frontend is None or frontend.incarnation != request.client.incarnation or user.stream is None:
            return False
        return user.stream.request_id == request.request_id

    # ── faults ──────────────────────────────────────────────────────────────────────────────────

    def _fault(self) -> None:
        draw, cluster = self.draw, self.cluster
        process = draw.choice(cluster.processes) if cluster.processes else None
        worker = cluster.worker
        kind = draw.choice(["kill", "kill", "kill in a turn", "hang", "stop", "step", "step", "slow", "roll"])
        self.faults[kind] = self.faults.get(kind, 0) + 1
        if kind == "step" and worker is not None:
            fault = draw.choice(["exception", "exit", "out_of_memory"])
            worker.faults += [fault] * (draw.choice([1, 2, 3]) if fault == "out_of_memory" else 1)
        elif kind == "slow" and worker is not None:
            worker.faults.append("slow")
            cluster.watch.look_for(4)
        elif kind == "roll":
            cluster.roll(draw.randrange(len(cluster.frontends)))
        elif process is None:
            pass
        elif kind == "kill":
            cluster.kill(process)
        elif kind == "kill in a turn":
            process.sends_left = draw.randrange(6)
        elif kind in ("hang", "stop"):
            seconds = draw.choice([0.1, 0.4, 1.2, 5.0, math.inf])
            cluster.hang(process, seconds, stopped=kind == "stop")

    def _calm(self) -> None:
        """No more faults, and what hangs goes on."""
        self.settings.weather.clear()
        self.cluster.calm = True
        for process in self.cluster.processes:
            process.sends_left = None
            process.go_on()
        if self.cluster.worker is not None:
            self.cluster.worker.faults.clear()

    # ── what must hold ──────────────────────────────────────────────────────────────────────────

    def _count_outcomes(self) -> None:
        for user in [user for user in self.users if user.outcome]:
            self.outcomes[user.outcome] = self.outcomes.get(user.outcome, 0) + 1
            if user.outcome == "finished" and (user.task.grammar or user.task.embed):
                kind = "constrained" if user.task.grammar else "embedded"
                self.outcomes[kind] = self.outcomes.get(kind, 0) + 1
            del self.users[user]

    def _check_end(self) -> None:
        """Nothing is left of anybody."""
        core = self.cluster.engine
        assert core is not None
        core.check()
        engine = core.engine
        scheduler = engine.scheduler
        assert scheduler is not None
        assert not list(scheduler.running), "requests still run"
        assert not len(scheduler.waiting), "requests still wait"
        assert not len(scheduler.suspects), "suspects are left"
        assert not scheduler.in_flight, "a step never came back"
        pool = scheduler.kv.pool
        assert not any(pool.references)
        assert pool.num_free == pool.num_blocks, f"{pool.num_free} of {pool.num_blocks} blocks are free"
        assert not len(engine.desk.kept), "kept requests did not expire"
        assert all(not client.requests for client in engine.desk.clients.values())
        assert not self.cluster.retired, "a frontend that was replaced is still there"
        for frontend in self.cluster.frontends:
            assert frontend is not None
            assert not frontend.registry.streams
            assert not frontend.registry.malformed
            if self.clear:
                assert not frontend.registry.gaps, "a gap where no frame is lost"

    def _stop(self) -> None:
        """SIGTERM with streams open: all of them end as they should, and then the frontends."""
        for number in range(8):
            name = f"last user {number} of seed {self.seed}"
            task = self.draw.choice(self.tasks)
            self._enter(User(name, task, self.agenda.now, None, "", "", "a", "", 0, strays=True, tight=True))
        self.agenda.run(self.agenda.now + self.draw.choice([0.001, 0.05, 0.5]))
        self.cluster.drain()
        self.agenda.run(self.agenda.now + _LIVENESS_S)
        assert not self.open_users, "a stream did not end while the server stopped"
        assert not self.cluster.retired, "a frontend did not end while the server stopped"
        outcomes = {user.outcome for user in self.users}
        assert outcomes <= {"finished", "overloaded"}, outcomes
        self._count_outcomes()


def _draw_settings(draw: Random) -> Settings:
    block_size = draw.choice([4, 16])
    bad = draw.choice([0.0, 0.0, 0.001, 0.01, 0.05])
    scheduler = SchedulerOptions(
        max_num_seqs=draw.choice([1, 4, 16, 64]),
        max_num_batched_tokens=draw.choice([16, 64, 512]),
        max_num_waiting=draw.choice([8, 4096, 4096]),
        max_waiting_tokens=1_000_000,
        enable_chunked_prefill=draw.random() < 0.8,
        async_scheduling=draw.random() < 0.8,
        inter_token_target_ms=draw.choice([0, 20]),
    )
    windows = draw.choice(_WINDOWS)
    chunk = scheduler.largest_chunk(MAX_MODEL_LEN)
    least = blocks_of(lay_out(windows).groups, MAX_MODEL_LEN, chunk, block_size)
    num_blocks = least + draw.choice([1, 20, 200])
    cache = CacheOptions(
        block_size=block_size, num_kv_blocks=num_blocks, enable_prefix_caching=draw.random() < 0.8
    )
    weather = Weather(drop=bad, duplicate=bad, delay=bad, encoded=draw.random() < 0.2)
    step_s = draw.choice([0.005, 0.02, 0.05])
    return Settings(
        scheduler,
        cache,
        windows,
        draw.randint(1, 3),
        step_s,
        weather=weather,
        tokenizer=MODEL if draw.random() < 0.5 else "",
        num_ranks=draw.choice([1, 1, 2]),
    )
