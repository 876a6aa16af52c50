"""The real scheduler and block pool in a simulated world, with invariants after every event."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.kv_groups import blocks_of
from protocol.options import CacheOptions, SchedulerOptions
from tests.simulation.simulator import World
from worker.kv_layout import Window, lay_out

WINDOWS: list[tuple[Window, ...]] = [
    (None,),
    (9,),
    (2,),
    (5, None),
    (17, 17, None, 17, 17, 3),
    (33, None, 64),
]
"""Of a model's layers. Those of one model need up to four tables."""

SIMULATION = settings(
    max_examples=60, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


@SIMULATION
@given(
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([1, 4, 16]),
    spare_blocks=st.sampled_from([0, 1, 5, 100]),
    max_num_seqs=st.sampled_from([1, 3, 16]),
    budget=st.sampled_from([16, 64, 512]),
    chunked=st.booleans(),
    caching=st.booleans(),
    depth=st.sampled_from([1, 2, 3]),
    crash_every=st.sampled_from([0, 20]),
    windows=st.sampled_from(WINDOWS),
)
def test_any_world_ends_with_the_right_answers(
    seed: int,
    block_size: int,
    spare_blocks: int,
    max_num_seqs: int,
    budget: int,
    chunked: bool,
    caching: bool,
    depth: int,
    crash_every: int,
    windows: tuple[Window, ...],
) -> None:
    max_model_len = 128
    options = SchedulerOptions(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, enable_chunked_prefill=chunked
    )
    chunk = options.largest_chunk(max_model_len)
    least = blocks_of(lay_out(windows).groups, max_model_len, chunk, block_size)
    cache = CacheOptions(
        block_size=block_size, num_kv_blocks=least + spare_blocks, enable_prefix_caching=caching
    )
    world = World(seed, options, cache, max_model_len, crash_every, depth, windows)
    world.run(num_requests=25)


@pytest.mark.parametrize(("windows", "num_blocks"), [((None,), 48), ((9, None), 60)])
@pytest.mark.parametrize("seed", range(3))
def test_memory_pressure_preempts_and_prefix_hits_occur(
    seed: int, windows: tuple[Window, ...], num_blocks: int
) -> None:
    """The two mechanisms that the world above is meant to exercise really are exercised."""
    options = SchedulerOptions(max_num_seqs=16, max_num_batched_tokens=16 if any(windows) else 256)
    cache = CacheOptions(block_size=4, num_kv_blocks=num_blocks)
    world = World(seed, options, cache, max_model_len=128, windows=windows)
    world.run(num_requests=80, abort_share=0)
    assert world.scheduler.preemptions > 0
    assert world.scheduler.prefix_hits > 0


@pytest.mark.parametrize("seed", range(3))
def test_one_step_ahead_costs_no_extra_steps_per_token(seed: int) -> None:
    """Without memory pressure, planning ahead wastes at most the one row after each unforeseen end."""
    steps = []
    for depth in (1, 2):
        options = SchedulerOptions(max_num_seqs=16, max_num_batched_tokens=512)
        world = World(seed, options, CacheOptions(block_size=16, num_kv_blocks=1000), depth=depth)
        for _ in range(8):
            world.submit()
        world.run(num_requests=8, abort_share=0)
        steps.append(world.steps)
    assert steps[1] <= steps[0] + 8


def test_a_window_is_all_that_a_long_answer_holds() -> None:
    """15 blocks of 4 tokens, of which a step in flight may still read some, serve two of 120 tokens."""
    options = SchedulerOptions(max_num_seqs=2, max_num_batched_tokens=16)
    world = World(5, options, CacheOptions(block_size=4, num_kv_blocks=15), 128, windows=(9,))
    world.run(num_requests=30)
    assert world.runner.facts.max_model_len == 128
    assert world.most_held <= (9 - 1 + 16) // 4 + 2
