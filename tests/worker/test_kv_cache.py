"""How many blocks fit, and what is said when too few do."""

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import OutOfMemory, StartupError
from protocol.kv_groups import KVGroup
from protocol.options import CacheOptions
from worker.kv_cache import KVBudget, fit
from worker.memory import MOST_BYTES, available_memory

MIB = 1 << 20
BUDGET = KVBudget(
    options=CacheOptions(block_size=16),
    groups=(KVGroup(),),
    block_bytes=MIB,
    max_num_seqs=4,
    model_len=1000,
    wanted_len=0,
    chunk=64,
    available_bytes=400 * MIB,
)


def with_options(num_kv_blocks: int = 0, kv_cache_memory: int = 0) -> KVBudget:
    options = CacheOptions(block_size=16, num_kv_blocks=num_kv_blocks, kv_cache_memory=kv_cache_memory)
    return replace(BUDGET, options=options)


def test_a_quarter_of_what_is_available() -> None:
    assert fit(BUDGET) == (100, 1000)


def test_not_more_than_can_be_used() -> None:
    assert fit(replace(BUDGET, wanted_len=160)) == (4 * 10, 160)


def test_not_more_than_the_most() -> None:
    plenty = replace(BUDGET, available_bytes=100 * MOST_BYTES, max_num_seqs=4096)
    assert fit(plenty)[0] == MOST_BYTES // MIB


def test_the_memory_bounds_the_context() -> None:
    assert fit(replace(BUDGET, available_bytes=40 * MIB)) == (10, 160)


def test_given_blocks_and_given_memory() -> None:
    assert fit(with_options(num_kv_blocks=7)) == (7, 112)
    assert fit(with_options(kv_cache_memory=9 * MIB + 5)) == (9, 144)
    assert fit(with_options(num_kv_blocks=7, kv_cache_memory=9 * MIB)) == (7, 112)


def test_longer_than_the_model() -> None:
    with pytest.raises(StartupError, match="--max-model-len 2000 is longer than the model's 1000") as caught:
        fit(replace(BUDGET, wanted_len=2000))
    assert "at most 1000" in caught.value.hint


def test_windows_let_sequences_be_longer_than_the_memory() -> None:
    """A window of 100 and a chunk of 64 lie in 12 blocks at most."""
    sliding = replace(BUDGET, groups=(KVGroup(100),), available_bytes=48 * MIB, model_len=100_000)
    assert fit(sliding) == (12, 100_000)
    assert fit(replace(sliding, available_bytes=44 * MIB)) == (11, 176)
    assert fit(replace(sliding, available_bytes=400 * MIB)) == (4 * 12, 100_000), "not more than can be used"
    mixed = replace(sliding, groups=(KVGroup(100), KVGroup()), available_bytes=400 * MIB)
    assert fit(mixed) == (100, 88 * 16)


def test_not_one_block_of_each_group() -> None:
    with pytest.raises(OutOfMemory, match=r"a block of 16 tokens takes 2.0 MiB"):
        fit(replace(BUDGET, groups=(KVGroup(100), KVGroup()), available_bytes=4 * MIB))


def test_not_one_block() -> None:
    with pytest.raises(OutOfMemory, match=r"not one KV block fits: a block of 16 .* 1.0 MiB") as caught:
        fit(replace(BUDGET, available_bytes=MIB))
    assert "--kv-cache-memory" in caught.value.hint


def test_not_one_sequence() -> None:
    with pytest.raises(OutOfMemory, match=r"--max-model-len 320 needs 20.0 MiB of KV") as caught:
        fit(replace(BUDGET, wanted_len=320, available_bytes=40 * MIB))
    assert "--max-model-len 160 would fit" in caught.value.hint


@pytest.mark.parametrize("options", [{"num_kv_blocks": 401}, {"kv_cache_memory": 401 * MIB}])
def test_more_than_there_is(options: dict[str, int]) -> None:
    with pytest.raises(OutOfMemory, match=r"401.* 400.0 MiB are available"):
        fit(with_options(**options))


def test_available_memory_is_a_plausible_number() -> None:
    assert MIB < available_memory() < 1 << 50


@pytest.mark.parametrize(
    ("folder", "limit", "usage", "prefix"),
    [("", "max", "current", ""), ("memory", "limit_in_bytes", "usage_in_bytes", "total_")],
)
def test_pages_of_mapped_weights_do_not_keep_a_worker_from_starting_again(
    folder: str, limit: str, usage: str, prefix: str, tmp_path: Path
) -> None:
    """A container of 8 GiB whose last worker has mapped 5."""
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\nHugePages_Free: 0\n"
    )
    (group / f"memory.{limit}").write_text(f"{8192 * MIB}\n")
    (group / f"memory.{usage}").write_text(f"{6144 * MIB}\n")
    (group / "memory.stat").write_text(
        f"anon {1024 * MIB}\n{prefix}active_file {2048 * MIB}\n{prefix}inactive_file {3072 * MIB}\n"
    )
    assert available_memory(tmp_path, tmp_path / "cgroup") == 7168 * MIB
    (group / "memory.stat").unlink()
    assert available_memory(tmp_path, tmp_path / "cgroup") == 2048 * MIB
