"""The engine core's small state machines, each alone."""

from array import array
from random import Random

import pytest

from engine_core.block_pool import BlockPool
from engine_core.clients import Client
from engine_core.meter import Meter
from engine_core.prefix_cache import PrefixCache
from engine_core.request import Request, State
from engine_core.waiting import WaitingQueue
from protocol import columns
from protocol.kv_groups import NO_BLOCK, KVGroup
from protocol.messages import EngineFacts, Submit
from protocol.sampling import SamplingParams

FACTS = EngineFacts("m", 512, 4096, 16, 64, (0,), 8)


def pool_of(num_blocks: int) -> tuple[BlockPool, set[int], list[int]]:
    """(pool, the blocks it shall believe cached, what it evicts)"""
    cached: set[int] = set()
    evicted: list[int] = []
    return BlockPool(num_blocks, cached.__contains__, evicted.append), cached, evicted


def request(arrival: int, *, tenant: str = "", priority: int = 0, num_tokens: int = 10) -> Request:
    submit = Submit(
        arrival, columns.pack_ids([1] * num_tokens), SamplingParams(), tenant=tenant, priority=priority
    )
    return Request(Client(b"", "", 0), submit, FACTS, arrival)


# ── block pool ──────────────────────────────────────────────────────────────────────────────────


def test_blocks_wait_behind_their_fence() -> None:
    pool, _, _ = pool_of(4)
    held = [pool.take() for _ in range(4)]
    pool.release(held, fence=7)
    pool.settle(6)
    assert pool.num_free == 0
    pool.settle(7)
    assert pool.num_free == 4
    pool.check({})


def test_a_block_found_again_behind_its_fence_stays_held_until_the_later_one() -> None:
    pool, _, _ = pool_of(1)
    block = pool.take()
    pool.release([block], fence=3)
    pool.share(block)
    pool.release([block], fence=5)
    pool.settle(3)
    assert pool.num_free == 0
    pool.settle(5)
    assert pool.num_free == 1


def test_least_recently_used_goes_first_and_the_tail_of_a_sequence_before_its_head() -> None:
    pool, cached, evicted = pool_of(6)
    old, new = [pool.take(), pool.take()], [pool.take(), pool.take()]
    cached.update(old, new)
    pool.release(old, fence=0)
    pool.release(new, fence=0)
    pool.settle(0)
    taken = [pool.take() for _ in range(6)]
    assert taken[2:] == [old[1], old[0], new[1], new[0]]  # after the two that were never used
    assert evicted[-4:] == taken[2:]


def test_blocks_that_nobody_could_find_again_go_before_all_others() -> None:
    pool, cached, _ = pool_of(3)
    held = [pool.take() for _ in range(3)]
    cached.update(held[:2])
    pool.release(held[:2], fence=0)
    pool.release(held[2:], fence=0)
    pool.settle(0)
    assert pool.take() == held[2]


def test_the_check_finds_a_lost_block() -> None:
    pool, _, _ = pool_of(2)
    pool.take()
    with pytest.raises(AssertionError, match="references"):
        pool.check({})


# ── prefix cache ────────────────────────────────────────────────────────────────────────────────


def test_keys_depend_on_everything_before_and_on_who_asks() -> None:
    cache = PrefixCache(2)
    roots = {
        cache.root(*fields) for fields in [("a", "b", ""), ("ab", "", ""), ("", "ab", ""), ("a", "", "b")]
    }
    assert len(roots) == 4
    root = cache.root("", "", "")
    keys: list[bytes] = []
    cache.extend(keys, root, array("i", [1, 2, 3, 4, 5]))
    other: list[bytes] = []
    cache.extend(other, root, array("i", [9, 2, 3, 4]))
    assert len(keys) == 2  # whole blocks only
    assert not set(keys) & set(other)
    again = keys[:1]
    cache.extend(again, root, array("i", [1, 2, 3, 4]))
    assert again == keys
    foreign: list[bytes] = []
    stranger = PrefixCache(2)
    stranger.extend(foreign, stranger.root("", "", ""), array("i", [1, 2]))
    assert foreign[0] != keys[0], "another engine core has another secret"


def test_the_longest_prefix_is_found_and_eviction_cuts_it() -> None:
    cache = PrefixCache(1)
    keys: list[bytes] = []
    cache.extend(keys, cache.root("", "", ""), array("i", range(5)))
    for block, key in enumerate(keys):
        cache.insert(0, key, block)
    assert cache.match(keys, 5) == ([0, 1, 2, 3, 4],)
    assert cache.match(keys, 3) == ([0, 1, 2],)
    cache.evict(1)
    assert cache.match(keys, 5) == ([0],)
    cache.insert(0, keys[0], 7)
    assert cache.match(keys, 1) == ([0],), "the first block of a key stays"


@pytest.mark.parametrize("seed", range(20))
def test_with_windows_the_longest_prefix_is_the_one_of_the_definition(seed: int) -> None:
    """Every length is tried whose next token would find all that it reads."""
    draw = Random(seed)
    size = draw.choice([1, 2, 4])
    groups = tuple(KVGroup(draw.choice([None, 1, 2, 5, 9])) for _ in range(draw.randint(1, 3)))
    cache = PrefixCache(size, groups)
    keys: list[bytes] = []
    cache.extend(keys, cache.root("", "", ""), array("i", range(20 * size)))
    for group in range(len(groups)):
        for index, key in enumerate(keys):
            if draw.random() < 0.85:
                cache.insert(group, key, 100 * group + index)

    def is_there(length: int) -> bool:
        return all(
            keys[index] in found
            for group, found in zip(groups, cache.block_of, strict=True)
            for index in range(group.first_block(length * size, size), length)
        )

    for limit in range(21):
        expected = max(length for length in range(limit + 1) if is_there(length))
        tables = cache.match(keys, limit)
        assert {len(table) for table in tables} == {expected}
        for number, (kv_group, table) in enumerate(zip(groups, tables, strict=True)):
            first = kv_group.first_block(expected * size, size)
            assert table == [NO_BLOCK] * first + [100 * number + index for index in range(first, expected)]


def test_blocks_of_bad_numbers_are_forgotten_in_every_group() -> None:
    cache = PrefixCache(1, (KVGroup(), KVGroup(2)))
    keys: list[bytes] = []
    cache.extend(keys, cache.root("", "", ""), array("i", range(3)))
    for group in range(2):
        for index, key in enumerate(keys):
            cache.insert(group, key, 3 * group + index)
    cache.distrust(keys[1:])
    assert cache.key_of == {0: keys[0], 3: keys[0]}
    assert cache.match(keys, 3) == ([0], [3])


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


def drain(queue: WaitingQueue) -> list[int]:
    order = []
    while (head := queue.peek()) is not None:
        popped = queue.pop()
        assert popped is head
        order.append(popped.arrival)
    return order


def test_order_is_priority_then_arrival() -> None:
    queue = WaitingQueue()
    for arrival, priority in [(0, 1), (1, 0), (2, -5), (3, 0)]:
        queue.push(request(arrival, priority=priority))
    assert len(queue) == 4
    assert drain(queue) == [2, 1, 3, 0]


def test_tenants_share_fairly_by_tokens() -> None:
    queue = WaitingQueue()
    for arrival in range(6):
        queue.push(request(arrival, tenant="greedy"))
    for arrival in range(6, 9):
        queue.push(request(arrival, tenant="modest"))
    assert drain(queue) == [0, 6, 1, 7, 2, 8, 3, 4, 5]


def test_a_tenant_that_was_idle_starts_at_the_present() -> None:
    queue = WaitingQueue()
    for arrival in range(10):
        queue.push(request(arrival, tenant="busy"))
    for _ in range(8):
        queue.pop()
    for arrival in range(10, 14):
        queue.push(request(arrival, tenant="late"))
    order = drain(queue)
    assert order.index(8) <= 2, "the newcomer must not be owed what it never asked for"


def test_ended_requests_are_skipped() -> None:
    queue = WaitingQueue()
    requests = [request(arrival) for arrival in range(3)]
    for one in requests:
        queue.push(one)
    requests[0].state = State.ENDED
    queue.discard(requests[0])
    assert len(queue) == 2
    assert list(queue) == requests[1:]
    assert drain(queue) == [1, 2]


# ── meter ───────────────────────────────────────────────────────────────────────────────────────


def test_the_prompt_budget_follows_measured_step_times() -> None:
    meter = Meter(target_s=0.050, most=2048)
    assert meter.prompt_budget(1, 32) == 2048, "nothing is known yet"
    for _ in range(50):
        meter.record(num_decodes=32, num_prompt_tokens=0, seconds=0.010)
        meter.record(num_decodes=32, num_prompt_tokens=100, seconds=0.030)
    assert meter.prompt_budget(1, 32) == pytest.approx(200, rel=0.05)
    for _ in range(50):
        meter.record(num_decodes=32, num_prompt_tokens=100, seconds=5.0)
    assert meter.prompt_budget(1, 32) == 16, "prompts always get on"
    assert Meter(target_s=0, most=99).prompt_budget(1, 32) == 99


def test_where_decoding_alone_takes_the_target_time_is_shared_by_heads() -> None:
    meter = Meter(target_s=0.050, most=2048)
    for _ in range(50):
        meter.record(num_decodes=4, num_prompt_tokens=0, seconds=0.060)
        meter.record(num_decodes=4, num_prompt_tokens=100, seconds=0.160)
    assert meter.prompt_budget(1, 4) == pytest.approx(240, abs=2), "five times a decode step"
    assert meter.prompt_budget(36, 4) == pytest.approx(540, abs=2), "one share for decoding, nine for prompts"


def test_a_full_queue_is_worth_coming_back_to_when_a_tenth_of_it_has_left() -> None:
    meter = Meter(0.05, 2048)
    assert meter.retry_after_s(100, 1000.0) == 60, "nothing is known yet"
    for second in range(100):
        meter.record_ends(5, 1000.0 + second)
    assert meter.retry_after_s(100, 1100.0) == pytest.approx(2, rel=0.2)
    assert meter.retry_after_s(1000, 1100.0) == pytest.approx(20, rel=0.2)
    assert meter.retry_after_s(1, 1100.0) == 1
    assert meter.retry_after_s(100_000, 1100.0) == 60
    assert meter.retry_after_s(100, 2000.0) == 60, "that was long ago"
