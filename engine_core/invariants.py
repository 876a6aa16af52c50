"""What must hold in the engine core after every step; tests and simulations assert it."""

from .request import State
from .scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raises AssertionError."""
    holders: dict[int, int] = {}
    slots: set[int] = set()
    for request in scheduler.running():
        assert request.state is State.RUNNING
        assert request.slot not in slots, "two requests in one slot"
        slots.add(request.slot)
        for block in request.block_table:
            holders[block] = holders.get(block, 0) + 1
        computed = scheduler.num_computed_tokens(request)
        assert computed <= len(request.block_table) * scheduler.facts.block_size
        assert request.num_tokens <= request.max_total_tokens
        assert computed < request.max_total_tokens, "computed past its last token"
        if request.is_decoding:
            assert request in scheduler.due[request.due_step], "nobody will look at it when it is due"
    scheduler.pool.check(holders)
    assert not slots & set(scheduler.free_slots), "a slot is both free and taken"
    assert len(slots) + len(scheduler.free_slots) == scheduler.facts.max_num_seqs
    waiting = list(scheduler.waiting)
    assert len(waiting) == len(set(waiting)) == len(scheduler.waiting)
    assert not set(waiting) & set(scheduler.running()), "a request both waits and runs"
    assert not set(waiting) & set(scheduler.suspects), "a suspect waits twice"
    if scheduler.suspects:
        assert set(scheduler.running()) <= {scheduler.suspects.first}, "a suspect does not run alone"
    for step in scheduler.in_flight:
        prompts_alone = not scheduler.options.enable_chunked_prefill and len(step.chunks) == 1
        assert step.num_tokens <= scheduler.options.max_num_batched_tokens or prompts_alone
    for key, block in scheduler.prefix_cache.block_of.items():
        assert scheduler.prefix_cache.key_of[block] == key
    for request in scheduler.running():
        full = min(scheduler.num_computed_tokens(request), request.num_tokens) // scheduler.facts.block_size
        for key, block in zip(request.block_keys[:full], request.block_table, strict=False):
            assert scheduler.prefix_cache.key_of.get(block, key) == key, (
                "a block's key is not that of its ids"
            )
