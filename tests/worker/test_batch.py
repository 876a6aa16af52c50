"""The resident batch: plans that break a rule raise, and rows come in the promised order."""

from collections.abc import Callable

import numpy as np
import pytest

from protocol import columns
from protocol.errors import InternalError
from protocol.kv_groups import KVGroup
from protocol.messages import EngineFacts
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan
from worker.batch import Batch, Rows

NUM_BLOCKS = 10


def start(slot: int, known: int, blocks: list[int], *, computed: int = 0, prompt: int = 1) -> SequenceStart:
    ids = columns.pack_ids(range(known))
    return SequenceStart(slot, ids, prompt, computed, columns.pack_ids(blocks), SamplingParams())


def plan(
    counts: dict[int, int],
    *started: SequenceStart,
    released: tuple[int, ...] = (),
    grown: tuple[tuple[int, int], ...] = (),
    groups: int = 1,
) -> StepPlan:
    """With several groups, their blocks follow one another in `grown`."""
    return StepPlan(
        epoch=1,
        step=1,
        scheduled_slots=columns.pack_ids(counts),
        scheduled_counts=columns.pack_ids(counts.values()),
        released=columns.pack_ids(released),
        started=started,
        grown_slots=columns.pack_ids(slot for slot, _ in grown[::groups]),
        grown_blocks=columns.pack_ids(block for _, block in grown),
    )


@pytest.fixture
def batch() -> Batch:
    """Blocks of 4 tokens, sequences of up to 16, ids below 50; slot 1 has 6 tokens, 5 of them computed."""
    batch = Batch(EngineFacts("m", 50, 16, 4, NUM_BLOCKS, (), max_num_seqs=3))
    run(batch, plan({1: 5}, start(1, 6, [7, 8])))
    return batch


def run(batch: Batch, step: StepPlan) -> Rows:
    """All of a step but the model: it samples token 9."""
    batch.edit(step)
    rows = batch.arrange(step)
    batch.inputs(rows)
    batch.advance(rows, rows.slots_on_device * 0 + 9)
    return rows


BAD_PLANS: dict[str, tuple[StepPlan, str]] = {
    "start: taken slot": (plan({1: 1}, start(1, 3, [0])), "starts slot 1, which is taken"),
    "start: no such slot": (plan({1: 1}, start(3, 3, [0])), "starts slot 3, which is .* not one of 3"),
    "start: no tokens": (plan({1: 1}, start(0, 0, [0])), "with 0 tokens"),
    "start: too long": (plan({1: 1}, start(0, 17, [0, 1, 2, 3])), "with 17 tokens.*longest sequence is 16"),
    "start: nothing to do": (plan({1: 1}, start(0, 4, [0], computed=4)), "and 4 computed"),
    "start: border": (plan({1: 1}, start(0, 4, [0], prompt=5)), "5 of them prompt"),
    "start: unknown block": (plan({1: 1}, start(0, 3, [NUM_BLOCKS])), r"blocks outside of 0…9: \[10\]"),
    "start: negative block": (plan({1: 1}, start(0, 3, [-1])), r"blocks outside of 0…9: \[-1\]"),
    "start: too few blocks": (
        plan({1: 1}, start(0, 9, [0], computed=5)),
        "with 1 blocks in 1 tables for 5 tokens",
    ),
    "start: too many blocks": (plan({1: 1}, start(0, 3, [0, 1, 2, 3, 4])), "with 5 blocks"),
    "release: empty slot": (plan({1: 1}, released=(0,)), r"releases slots that are empty.*\[0\]"),
    "release: no such slot": (plan({1: 1}, released=(-1,)), "releases slots"),
    "grow: empty slot": (plan({1: 1}, grown=((0, 1),)), "grows slots that are empty"),
    "grow: unknown block": (plan({1: 1}, grown=((1, 10),)), "blocks outside"),
    "grow: too far": (plan({1: 1}, grown=((1, 1), (1, 2), (1, 3))), "grows slot 1 beyond 4 blocks"),
    "schedule: nothing": (plan({}), "schedules 0 slots"),
    "schedule: empty slot": (plan({0: 1}), "schedules slots that are empty"),
    "schedule: no such slot": (plan({99: 1}), "schedules slots .* out of range"),
    "schedule: no token": (plan({1: 0}), "computes 0 tokens of slot 1, but 1 are left"),
    "schedule: too many": (plan({1: 2}), "computes 2 tokens of slot 1, but 1 are left"),
    "schedule: released": (plan({1: 1}, released=(1,)), "schedules slots that are empty"),
    "schedule: without room": (
        plan({0: 5}, start(0, 5, [0])),
        "slot 0 up to 5 tokens, but it has 1 block",
    ),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plans_raise(case: str, batch: Batch) -> None:
    bad, message = BAD_PLANS[case]
    with pytest.raises(InternalError, match=message):
        run(batch, bad)


def test_a_token_outside_of_the_vocabulary_raises(batch: Batch) -> None:
    bad = SequenceStart(0, columns.pack_ids([50]), 1, 0, columns.pack_ids([0]), SamplingParams())
    with pytest.raises(InternalError, match="token outside of 0…49"):
        batch.edit(plan({0: 1}, bad))


def test_doubled_slots_raise(batch: Batch) -> None:
    slots, counts = columns.pack_ids([1, 1]), columns.pack_ids([1, 1])
    with pytest.raises(InternalError, match="doubled"):
        batch.arrange(StepPlan(1, 1, slots, counts))


def test_the_same_schedule_needs_room_too(batch: Batch) -> None:
    """The kept rows of the last step are checked against the blocks again."""
    for _ in range(3):
        run(batch, plan({1: 1}))
    with pytest.raises(InternalError, match="slot 1 up to 9 tokens, but it has 2 blocks"):
        run(batch, plan({1: 1}))


def test_rows_come_generating_first_and_longest_first(batch: Batch) -> None:
    run(batch, plan({2: 3}, start(2, 3, [5])))
    step = plan({0: 2, 2: 1, 1: 1}, start(0, 8, [0, 1]))
    granted = batch.edit(step)
    rows = batch.arrange(step)
    assert granted.tolist() == [0, 1]
    assert rows.slots.tolist() == [1, 2, 0]
    assert rows.plan_rows.tolist() == [2, 1, 0]
    assert rows.num_decodes == 2
    assert rows.query_start.tolist() == [0, 1, 2, 4]
    assert rows.sampling.tolist() == [0, 1]
    token_ids, positions = batch.inputs(rows)
    assert token_ids.tolist() == [5, 9, 0, 1]
    assert positions.tolist() == [5, 3, 0, 1]


def test_rows_are_kept_while_the_same_ones_generate(batch: Batch) -> None:
    first = run(batch, plan({1: 1}))
    assert run(batch, plan({1: 1})) is first
    assert run(batch, plan({1: 1}, start(0, 3, [0]))) is not first


def test_only_blocks_without_computed_tokens_are_granted_empty(batch: Batch) -> None:
    granted = batch.edit(plan({}, start(0, 12, [3, 4, 5], computed=5), grown=((1, 6),)))
    assert granted.tolist() == [5, 6]


def test_a_slot_can_be_released_and_started_in_one_plan(batch: Batch) -> None:
    rows = run(batch, plan({1: 2}, start(1, 2, [0]), released=(1,)))
    assert rows.sampling_slots.tolist() == [1]
    assert batch.block_tables[0, 1].tolist() == [0, NUM_BLOCKS, NUM_BLOCKS, NUM_BLOCKS]


# ── KV groups ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def grouped() -> Batch:
    """One group with a window of 5, one without; blocks of 4 tokens."""
    facts = EngineFacts("m", 50, 32, 4, NUM_BLOCKS, (), 3, kv_groups=(KVGroup(5), KVGroup()))
    return Batch(facts)


def test_tables_of_groups_grow_together_and_forget_what_has_left_the_window(grouped: Batch) -> None:
    null = NUM_BLOCKS
    run(grouped, plan({1: 7}, start(1, 7, []), grown=((1, 0), (1, 5), (1, 1), (1, 6)), groups=2))
    assert grouped.block_tables[:, 1, :3].tolist() == [[0, 1, null], [5, 6, null]]
    run(grouped, plan({1: 1}))
    run(grouped, plan({1: 1}, grown=((1, 2), (1, 7)), groups=2))
    assert grouped.block_tables[:, 1, :4].tolist() == [[null, 1, 2, null], [5, 6, 7, null]]
    assert grouped.num_blocks[1] == 3


def test_slots_grow_in_any_order_and_by_several_blocks(batch: Batch) -> None:
    run(batch, plan({0: 1}, start(0, 1, [0])))
    granted = batch.edit(plan({}, grown=((1, 1), (0, 2), (1, 3), (0, 4))))
    assert granted.tolist() == [1, 2, 3, 4]
    assert batch.block_tables[0, :2].tolist() == [[0, 2, 4, NUM_BLOCKS], [7, 8, 1, 3]]


def test_a_sequence_starts_without_what_its_window_has_left(grouped: Batch) -> None:
    granted = grouped.edit(plan({}, start(0, 13, [-1, -1, 3, 4, 5, 6], computed=12)))
    assert granted.tolist() == []
    assert grouped.block_tables[:, 0, :4].tolist() == [
        [NUM_BLOCKS, NUM_BLOCKS, 3, NUM_BLOCKS],
        [4, 5, 6, NUM_BLOCKS],
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (plan({}, start(0, 13, [-1, -1, -1, 4, 5, 6], computed=12)), r"blocks outside of 0…9: \[-1\]"),
        (plan({}, start(0, 13, [-1, -1, 3, -1, 5, 6], computed=12)), "blocks outside"),
        (plan({}, start(0, 13, [1, 2, 3], computed=4)), "with 3 blocks in 2 tables for 4 tokens"),
        (plan({}, start(0, 5, []), grown=((0, 1),)), "grows 1 slots by 1 blocks"),
    ],
)
def test_tables_that_lack_something_raise(bad: StepPlan, message: str, grouped: Batch) -> None:
    with pytest.raises(InternalError, match=message):
        grouped.edit(bad)


def test_reset_forgets(batch: Batch) -> None:
    batch.reset()
    with pytest.raises(InternalError, match="schedules slots that are empty"):
        run(batch, plan({1: 1}))


@pytest.mark.parametrize("column", [b"\x01", b"\x01\x02\x03"])
def test_a_column_of_broken_length_raises(column: bytes, batch: Batch) -> None:
    edits: list[Callable[[], StepPlan]] = [
        lambda: StepPlan(1, 1, column, columns.pack_ids([1])),
        lambda: StepPlan(1, 1, b"", b"", released=column),
    ]
    for edit in edits:
        with pytest.raises(ValueError, match="multiple"):
            run(batch, edit())


def test_tables_are_null_behind_their_end(batch: Batch) -> None:
    assert (batch.block_tables[0, 0] == NUM_BLOCKS).all()
    assert np.array_equal(batch.block_tables[0, 1], [7, 8, NUM_BLOCKS, NUM_BLOCKS])
