"""The whole server, from registry to hash model, in simulated time: a hundred hours of faults.

Answers, answers to grammars and embeddings; one rank and two; rolling restarts, and a drain at the end.

What fails names its seed, and the line that replays it.
"""

import os
from collections import Counter
from random import Random

import pytest

from protocol.options import CacheOptions, SchedulerOptions

from .campaign import Campaign
from .cluster import Cluster, Settings
from .network import Agenda

HOURS = 2
"""Of each seed; the settings are drawn anew with each, so many short lives show more than a long one."""
SEEDS_PER_BLOCK = 13
BLOCKS = range(0, 52, SEEDS_PER_BLOCK)
SEED_VARIABLE = "TERN_SIMULATION_SEED"


def run(seed: int, hours: float = HOURS) -> Campaign:
    campaign = Campaign(seed)
    try:
        campaign.run(hours)
    except BaseException as error:
        here = "python -m pytest tests/simulation/test_cluster_simulation.py -k one_seed"
        error.add_note(f"at {campaign.agenda.now:.4f} s of seed {seed}; again: {SEED_VARIABLE}={seed} {here}")
        raise
    return campaign


@pytest.mark.long
@pytest.mark.parametrize("first", BLOCKS)
def test_a_hundred_hours(first: int) -> None:
    """Every answer is right or its error has a cause, every process comes back, and nothing is left over."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_BLOCK):
        campaign = run(seed)
        seen.update(campaign.outcomes)
        seen.update(campaign.cluster.counters)
        seen.update(campaign.cluster.deaths)
        seen.update(verdicts=campaign.cluster.watch.verdicts)
    for name in (
        *("finished", "aborted", "left", "reset", "deadline_exceeded", "overloaded", "unavailable"),
        *("numerical_error", "internal_error", "request_crashed_worker", "idempotency_key_reused"),
        *("steps", "preemptions", "prefix_cache_hits", "resubmissions", "gaps", "crashed_requests"),
        *("engine_core", "worker", "frontend", "verdicts", "rolled", "missed"),
        *("constrained", "embedded"),
    ):
        assert seen[name], f"no {name} in {SEEDS_PER_BLOCK} lives: the simulation does not reach it"


def test_one_seed() -> None:
    """Of one's choice. Always the same without one: what fails now and then stops whoever changed nothing."""
    run(int(os.environ.get(SEED_VARIABLE) or 1000))


def test_a_seed_is_a_whole_history() -> None:
    """Otherwise a failing one could not be replayed."""
    first, again, other = (run(seed, hours=1) for seed in (3, 3, 4))
    assert (first.agenda.trace, first.agenda.num_events) == (again.agenda.trace, again.agenda.num_events)
    assert first.outcomes == again.outcomes
    assert first.agenda.trace != other.agenda.trace


def test_a_crash_loop_ends_the_server() -> None:
    """The supervisor's policy, in time: what dies too often is not started again, and all the rest ends."""
    agenda = Agenda()
    settings = Settings(SchedulerOptions(), CacheOptions(block_size=16, num_kv_blocks=64), max_restarts=3)
    cluster = Cluster(agenda, Random(1), settings)
    while cluster.gave_up is None and agenda.now < 600:
        agenda.run(agenda.now + 0.1)
        if cluster.worker is not None and cluster.worker.ready:
            cluster.kill(cluster.worker)
    assert cluster.gave_up == "4 deaths within 60 s (--max-restarts 3)"
    agenda.run(agenda.now + 600)
    assert not cluster.processes
    assert cluster.deaths == {"worker": 4, "engine_core": 1, "frontend": 1}


@pytest.mark.parametrize("kind", ["engine_core", "worker", "frontend"])
def test_deaths_far_apart_end_nothing(kind: str) -> None:
    agenda = Agenda()
    settings = Settings(SchedulerOptions(), CacheOptions(block_size=16, num_kv_blocks=64), max_restarts=3)
    cluster = Cluster(agenda, Random(1), settings)
    for _ in range(10):
        agenda.run(agenda.now + 61)
        (process,) = [one for one in cluster.processes if one.kind == kind]
        assert process.ready
        cluster.kill(process)
    agenda.run(agenda.now + 61)
    assert cluster.gave_up is None
    assert len(cluster.processes) == 3
