"""What must hold in the engine core after every step; tests and simulations assert it."""

from protocol import columns
from protocol.kv_groups import NO_BLOCK

from .kv_blocks import KVBlocks
from .planned_step import PlannedStep
from .request import Request, State
from .scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raises AssertionError."""
    slots: set[int] = set()
    for request in scheduler.running:
        assert request.state is State.RUNNING
        assert request.slot not in slots, "two requests in one slot"
        slots.add(request.slot)
        computed = scheduler.running.num_computed_tokens(request)
        assert computed <= request.num_blocks * scheduler.facts.block_size
        assert request.num_tokens <= request.max_total_tokens
        assert computed < request.max_total_tokens, "computed past its last token"
        if request.is_decoding:
            due = scheduler.running.calendar.due[request.due_step]
            assert request in due, "nobody looks at it when it is due"
        _check_tables(scheduler.kv, request, computed)
    _check_blocks(scheduler)
    assert not slots & set(scheduler.running.free_slots), "a slot is both free and taken"
    assert len(slots) + len(scheduler.running.free_slots) == scheduler.facts.max_num_seqs
    waiting = list(scheduler.waiting)
    assert len(waiting) == len(set(waiting)) == len(scheduler.waiting)
    assert not set(waiting) & set(scheduler.running), "a request both waits and runs"
    assert not set(waiting) & set(scheduler.suspects), "a suspect waits twice"
    if scheduler.suspects:
        assert set(scheduler.running) <= {scheduler.suspects.first}, "a suspect does not run alone"
    for step in scheduler.in_flight:
        prompts_alone = not scheduler.options.enable_chunked_prefill and len(step.chunks) == 1
        assert step.num_tokens <= scheduler.options.max_num_batched_tokens or prompts_alone


def touched(scheduler: Scheduler, step: PlannedStep) -> set[int]:
    """The blocks that a step, which was planned just now, uses for requests that are still there."""
    blocks: set[int] = set()
    for request, count in zip(step.requests, columns.unpack_ids(step.plan.scheduled_counts), strict=True):
        if request.state is not State.RUNNING:
            continue
        before = scheduler.running.num_computed_tokens(request) - count
        for group, table in zip(scheduler.kv.groups, request.block_tables, strict=True):
            read = table[group.first_block(before, scheduler.facts.block_size) :]
            assert NO_BLOCK not in read, "a block that a step reads has been released"
            blocks.update(read)
    return blocks


def _check_tables(kv: KVBlocks, request: Request, computed: int) -> None:
    """They are equally long, and lack nothing that a token to come reads."""
    for group, table, first in zip(kv.groups, request.block_tables, request.first_blocks, strict=True):
        assert len(table) == request.num_blocks
        assert table[:first] == [NO_BLOCK] * first
        assert NO_BLOCK not in table[first:]
        assert first <= group.first_block(computed, kv.block_size), "a block was released too early"


def _check_blocks(scheduler: Scheduler) -> None:
    """Who owns each block, and what is cached in it."""
    kv, cache = scheduler.kv, scheduler.kv.prefix_cache
    holders: dict[int, int] = {}
    group_of: dict[int, int] = {}
    for request in scheduler.running:
        full = min(scheduler.running.num_computed_tokens(request), request.num_tokens) // kv.block_size
        for group, table in enumerate(request.block_tables):
            for block in table[request.first_blocks[group] :]:
                holders[block] = holders.get(block, 0) + 1
                assert group_of.setdefault(block, group) == group, "a block is in two groups"
            for key, block in zip(request.block_keys[:full], table, strict=False):
                assert cache.key_of.get(block, key) == key, "a block's key is not that of its ids"
    kv.pool.check(holders)
    assert sum(map(len, cache.block_of)) == len(cache.key_of)
    for group, found in enumerate(cache.block_of):
        for key, block in found.items():
            assert cache.key_of[block] == key
            assert group_of.get(block, group) == group, "a block is cached for another group"
