"""Scheduler: which tokens are computed in the next step. No I/O, no clock, no sockets.

There is no prefill phase and no decode phase: each request knows some tokens and has computed some of
them, and each step spends a budget on letting the second number catch up with the first.

    waiting ──admit──▶ prefilling ──all known tokens planned──▶ decoding ──length reached──▶ spent
       ▲                   │                                │      │                           │
       └──────preempt──────┴────────────────────────────────┴──────┘        results end a request
                                                constrained: too, but the mask may follow the plan

`plan` may run ahead of the results. Short of blocks with a step in flight, it waits for that step's
result, which is either relief or certainty: then it preempts.
"""

from collections import deque

from protocol.messages import EngineFacts
from protocol.options import CacheOptions, SchedulerOptions
from protocol.steps import StepMasks

from .clients import Client
from .kv_blocks import KVBlocks
from .planned_step import Draft, PlannedStep, mask_bytes
from .request import Request, State
from .running import Running
from .suspects import Suspects
from .waiting import WaitingQueue

_MANY_FORCED = 4
"""Tokens, and as many as requests run: computed at once, which takes everyone about a step more. Fewer are
sampled one by one, under masks that allow nothing else."""
_GOOD_STEPS = 64
"""After which twice as many requests may run again as the device's memory sufficed for."""


class Scheduler:
    """Owns every live request, the slots and the blocks of one worker group in one epoch after another."""

    def __init__(self, options: SchedulerOptions, cache: CacheOptions, facts: EngineFacts) -> None:
        self.options = options
        self.facts = facts
        self.waiting = WaitingQueue()
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._caching = cache.enable_prefix_caching
        self.running = Running(facts, step=0)
        self.suspects = Suspects()
        """They wait apart from the others; while there are any, only the first of them runs."""
        self.most_running = facts.max_num_seqs
        """Fewer after a step for which the device's memory did not suffice."""
        self.reset(epoch=0, facts=facts)

    def reset(self, epoch: int, facts: EngineFacts) -> None:
        """The workers start from nothing: forget blocks and slots; whoever ran waits, with the ids it has."""
        for request in self.running:
            self._forget_kv(request)
            if not request.suspect:
                self.waiting.push(request)
        self.epoch = epoch
        self.facts = facts
        self.in_flight: deque[PlannedStep] = deque()
        self._maskless: PlannedStep | None = None
        self._mask_bytes = mask_bytes(facts.vocab_size)
        chunk = self.options.largest_chunk(facts.max_model_len)
        self.kv = KVBlocks(facts, chunk=chunk, caching=self._caching)
        self.running = Running(facts, self.running.step)
        self._released: list[int] = []
        for request in (*self.waiting, *self.suspects):
            request.forget_cache()

    # ── requests come and go ────────────────────────────────────────────────────────────────────

    def add(self, request: Request) -> None:
        """Queue a request that fits the model's context (checked at the door)."""
        self.waiting.push(request)

    def go_on(self, request: Request, num_forced: int) -> None:
        """It waits for its grammar, which has forced so many ids upon it, and now says what may follow."""
        if not request.suspect:
            self.waiting.num_tokens += num_forced
            self.waiting.release(request)

    def end(self, request: Request, *, trusted: bool = True) -> None:
        """Finished, aborted or failed: its slot and blocks are free once no step in flight uses them.

        Not `trusted`: its numbers were not finite, so nobody may find its blocks again.
        """
        if request.state is State.WAITING:
            request.state = State.ENDED
            if request.suspect:
                self.suspects.clear(request)
            else:
                self.waiting.discard(request)
        elif request.state is State.RUNNING:
            if trusted:
                self.kv.register(request, self.running.num_computed_tokens(request))
            else:
                self.kv.distrust(request)
            self._leave(request)
            request.state = State.ENDED
            if request.suspect:
                self.suspects.clear(request)

    def move(self, request: Request, client: Client, request_id: int) -> None:
        """Another client has the request now, under another id. Steps in flight deliver to that one."""
        self.running.move(request, client, request_id)
        for step in self.in_flight:
            step.strays.add(request)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(1 for request in self.suspects if request.state is State.WAITING)

    # ── one step ────────────────────────────────────────────────────────────────────────────────

    def plan(self, prompt_budget: int) -> PlannedStep | None:
        """The next step, or None when there is nothing to compute or nothing can be decided yet.

        At most `prompt_budget` tokens of new prompts share the step with decoding requests.
        """
        if self._maskless is not None or (self.suspects and not self._turn_suspects()):
            return None
        grown, running = self._make_room(), self.running
        if grown is None:
            return None
        lanes, num_decodes = running.decoding.steps(), len(running.decoding)
        total = self.options.max_num_batched_tokens - num_decodes
        answering = num_decodes or running.constrained
        new = min(total, prompt_budget) if answering else total
        draft = Draft(num_decodes, total, new, self._released, self._mask_bytes)
        for request in grown:
            draft.grow(request)
        for request in (*running.constrained, *running.prefilling):
            if not self._plan_next(request, draft):
                self._plan_chunk(request, draft)
        while running.free_slots and (candidate := self._candidate()) is not None and draft.of(candidate) > 0:
            if not self._admit(candidate):
                break
            draft.start(candidate)
            self._plan_chunk(candidate, draft)
        if not num_decodes and not draft.chunks:
            return None

        last = running.advance()
        step = draft.finish(self.epoch, running.step, lanes, last)
        self.in_flight.append(step)
        self._maskless = step if step.masked and not step.plan.masks else None
        return step

    def masks(self) -> StepMasks | None:
        """Those that the newest step came without, once grammars have said what its rows may sample. Before,
        no other step is planned."""
        if (step := self._maskless) is None or (masks := step.masks(self._mask_bytes)) is None:
            return None
        self._maskless = None
        return StepMasks(self.epoch, step.plan.step, masks)

    def settle(self, step: int) -> PlannedStep | None:
        """The result of the oldest step in flight is back. None: the number is not that step's."""
        if not self.in_flight or self.in_flight[0].plan.step != step:
            return None
        planned = self.in_flight.popleft()
        self.kv.pool.settle(step)
        if self.most_running < self.facts.max_num_seqs and step % _GOOD_STEPS == 0:
            self.most_running *= 2
        return planned

    def run_fewer(self) -> None:
        """The device's memory did not suffice for what runs: after the reset that follows, half as many."""
        self.preemptions += self.num_running
        self.most_running = max(1, self.num_running // 2)

    # ── inside: decoding ────────────────────────────────────────────────────────────────────────

    def _make_room(self) -> list[Request] | None:
        """Give each decoding request that is about to leave its last blocks new ones.

        Returns those requests; None if that needs blocks which only a result in flight can bring.
        """
        running, calendar = self.running, self.running.calendar
        step = running.step + 1
        growing: list[Request] = []
        kv, size, fence = self.kv, self.facts.block_size, self._fence
        for request in calendar.due_at(step):
            computed = request.num_blocks * size
            if computed >= request.max_total_tokens - 1:  # the context, not the block
                running.stop_decoding(request)
                running.spent[request] = None
            else:
                kv.trim(request, computed, fence)
                growing.append(request)
        while growing and not self._is_room_for(len(growing)):
            if self.in_flight:
                return None
            kv.pool.settle(running.step)
            if not self._is_room_for(len(growing)):
                candidates = (*running.decoding, *running.prefilling, *running.constrained)
                victim = max(candidates, key=lambda request: request.order)
                self._preempt(victim)
                if victim in growing:
                    growing.remove(victim)
        calendar.forget(step)
        for request in growing:
            computed = request.num_blocks * size
            kv.grow(request)
            calendar.postpone(request, step, computed)
        return growing

    def _is_room_for(self, growing: int) -> bool:
        """Beside what prompts that have begun will need."""
        spare = self.kv.pool.num_free - self.kv.spoken_for(self.running.prefilling)
        return growing * len(self.kv.groups) <= spare

    @property
    def _fence(self) -> int:
        """The last step that was sent."""
        return self.in_flight[-1].plan.step if self.in_flight else self.running.step

    # ── inside: prompts ─────────────────────────────────────────────────────────────────────────

    def _plan_next(self, request: Request, draft: Draft) -> bool:
        """Plan the next token of an answer to a grammar, if nothing stands in its way, as is usual."""
        computed, sent = request.num_computed_tokens, request.num_sent_tokens
        if request not in self.running.constrained or sent != computed + 1 or sent < len(request.token_ids):
            return False
        fits = computed < request.num_blocks * self.facts.block_size
        return fits and request.may_go_on and draft.next(request)

    def _plan_chunk(self, request: Request, draft: Draft) -> None:
        """Plan the next stretch of known tokens, if there is one and the draft has room for it."""
        running = self.running
        if not request.may_go_on:
            return
        forced = request.num_tokens - request.num_sent_tokens
        many_forced = forced >= _MANY_FORCED and forced >= len(running)
        known = request.num_tokens if many_forced else request.num_sent_tokens
        remaining = known - request.num_computed_tokens
        count = min(remaining, draft.of(request))
        if not self.options.enable_chunked_prefill and count < remaining:
            # Whole or not at all; too long a prompt gets its own step.
            count = 0 if draft.chunks else remaining
        if count <= 0:
            return
        fits = request.num_computed_tokens + count <= request.num_blocks * self.facts.block_size
        if not (room := count if fits else self._room_for(request, count)):
            sampling = request.num_sent_tokens > request.num_tokens
            may_wait = sampling or (self.in_flight and self.kv.pool.fenced)
            if request in running.constrained and not may_wait:
                self._preempt(request)  # else blocks come back with a result
            return
        if many_forced:
            draft.start_again(request)
        end = request.num_computed_tokens + room
        missing = -(-end // self.facts.block_size) - request.num_blocks
        for _ in range(missing):
            self.kv.grow(request)
        draft.grow(request, missing)
        draft.add(request, room)
        request.num_computed_tokens = end
        self.kv.register(request, end)
        if room == remaining:
            running.prefilling.pop(request, None)
            if request.embed:
                running.spent[request] = None
            elif request.grammar is None:
                running.begin_decoding(request)
            else:
                running.constrained[request] = None
                draft.mask(request)

    def _room_for(self, request: Request, count: int) -> int:
        """For how many tokens of a chunk there are blocks. For all, as other requests leave them to it, but
        those that its own window has left behind may still wait for a step in flight."""
        kv, prefilling = self.kv, self.running.prefilling
        kv.trim(request, request.num_computed_tokens, self._fence)
        reserve = 0 if request in prefilling else kv.spoken_for(prefilling)
        room = kv.room(request, reserve)
        if room < count and not self.in_flight:
            kv.pool.settle(self.running.step)
            room = kv.room(request, reserve)
            if self.options.enable_chunked_prefill:
                return min(count, room)
        return count if room >= count else 0

    def _admit(self, request: Request) -> bool:
        """Give the request a slot and what is cached of its tokens, if there are blocks for all of them."""
        kv = self.kv
        reserve = int(kv.pool.num_blocks * self.options.watermark) if self.num_running else 0
        if not kv.enter(request, reserve + kv.spoken_for(self.running.prefilling)):
            return False
        if not request.suspect:
            self.waiting.pop()
        self.running.enter(request)
        if request.num_cached_tokens < 0:
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
            self.prefix_queries += request.num_prompt_tokens
            self.prefix_hits += request.num_cached_tokens
            request.client.started.append((request.request_id, request.num_cached_tokens))
        return True

    def _candidate(self) -> Request | None:
        """Who may be admitted next."""
        if (first := self.suspects.first) is not None:
            return first if first.state is State.WAITING and not first.asks_grammar else None
        return self.waiting.peek() if self.num_running < self.most_running else None

    # ── inside: suspects ────────────────────────────────────────────────────────────────────────

    def _turn_suspects(self) -> bool:
        """Let go of the first suspect once it has got past the crash. False: a result is awaited first."""
        if self.in_flight:
            return False
        first = self.suspects.first
        if first is not None and first.state is State.RUNNING and first.num_tokens >= first.alone_until:
            self.suspects.clear(first)
            self._preempt(first)
        return True

    # ── inside: leaving ─────────────────────────────────────────────────────────────────────────

    def _preempt(self, request: Request) -> None:
        """Drop its blocks and let it wait; recomputing is usually a prefix hit."""
        self.preemptions += 1
        self.kv.register(request, self.running.num_computed_tokens(request))
        self._leave(request)
        self._forget_kv(request)
        self.waiting.push(request)

    def _leave(self, request: Request) -> None:
        for step in self.in_flight:
            step.strays.add(request)
        self._released.append(self.running.leave(request))
        self.kv.leave(request, self._fence)
        if not self.in_flight:
            self.kv.pool.settle(self._fence)

    def _forget_kv(self, request: Request) -> None:
        request.state = State.WAITING
        request.slot = -1
        self.kv.forget(request)
        request.num_computed_tokens = 0
        request.num_findable_blocks = 0
        request.due_step = -1
