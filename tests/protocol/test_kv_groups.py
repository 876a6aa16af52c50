"""What a window leaves behind, and how many blocks that takes: compared with counting."""

import pytest

from protocol.kv_groups import KVGroup, blocks_of, longest
from protocol.messages import EngineFacts

WINDOWS = [1, 2, 4, 5, 9]
SIZES = [1, 3, 4, 16]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_first_block_is_that_of_the_oldest_token_seen(window: int, size: int) -> None:
    for computed in range(40):
        oldest_seen = min(range(computed + 1), key=lambda i, c=computed: (c - i >= window, i))  # type: ignore[misc]
        assert KVGroup(window).first_block(computed, size) == oldest_seen // size
        assert KVGroup().first_block(computed, size) == 0


@pytest.mark.parametrize("chunk", [1, 2, 7, 16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_most_blocks_suffice_and_no_fewer_do(window: int, size: int, chunk: int) -> None:
    group = KVGroup(window)
    held = [
        -(-(computed + count) // size) - group.first_block(computed, size)
        for computed in range(60)
        for count in range(1, chunk + 1)
        if computed + count <= 60
    ]
    assert max(held) == group.most_blocks(60, chunk, size)
    assert KVGroup().most_blocks(60, chunk, size) == -(-60 // size)


def test_the_longest_sequence_is_the_last_that_fits() -> None:
    groups = KVGroup(9), KVGroup()
    for num_blocks in range(40):
        length = longest(groups, num_blocks, 100, 8, 4)
        assert length == 0 or blocks_of(groups, length, 8, 4) <= num_blocks
        assert length == 100 or blocks_of(groups, length + 1, 8, 4) > num_blocks
    assert longest((KVGroup(9),), 6, 1 << 20, 8, 4) == 1 << 20, "nothing but its window"


def test_tokens_that_the_blocks_hold() -> None:
    plain = EngineFacts("m", 10, 100, 16, 64, (), 8)
    assert plain.kv_tokens == (1024, 1024)
    sliding = EngineFacts("m", 10, 4096, 16, 64, (), 8, kv_groups=(KVGroup(64),))
    assert sliding.kv_tokens == (1024, 64 // 5 * 4096)
    mixed = EngineFacts("m", 10, 512, 16, 64, (), 8, kv_groups=(KVGroup(64), KVGroup()))
    assert mixed.kv_tokens == (512, 512)
