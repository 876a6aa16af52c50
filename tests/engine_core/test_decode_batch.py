"""Decoding requests in columns, against a plain list of them."""

import random
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.clients import Client
from engine_core.decode_batch import DecodeBatch, LaneStep
from engine_core.request import Request
from protocol import columns
from protocol.messages import EngineFacts, Submit
from protocol.sampling import SamplingParams

FACTS = EngineFacts("m", 512, 4096, 16, 64, (0,), 8)


def request(client: Client, number: int) -> Request:
    sampling = SamplingParams(stop_token_ids=(number % 7 + 1,))
    made = Request(client, Submit(number, columns.pack_ids([1]), sampling), FACTS, number)
    made.slot = number
    return made


def rows(steps: tuple[LaneStep, ...]) -> dict[int, tuple[Client, int, int]]:
    """request id → (client, slot, index)"""
    found = {}
    for step in steps:
        ids = columns.unpack(columns.UINT64, step.view.request_ids)
        slots = columns.unpack_ids(step.view.slots)
        indexes = columns.unpack(columns.UINT32, step.indexes)
        assert len(ids) == len(slots) == len(indexes) == len(step.view.requests) == len(step.view.appends)
        for one, request_id, slot, index in zip(step.view.requests, ids, slots, indexes, strict=True):
            assert one.request_id == request_id
            assert one.stop_token_ids <= step.view.stop_token_ids
            found[request_id] = step.view.client, slot, index
    return found


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_coming_and_going_keeps_the_columns_in_step(seed: int) -> None:
    draw = random.Random(seed)
    clients = [Client(bytes((number,)), "c", 0) for number in range(3)]
    batch, plain = DecodeBatch(), dict[Request, int]()
    for number in range(60):
        what = draw.random()
        if what < 0.4:
            made = request(draw.choice(clients), number)
            plain[made] = draw.choice([0, 5, 254, 255, 65_535, (1 << 24) - 1])
            batch.add(made, plain[made])
        elif what < 0.6 and plain:
            gone = draw.choice(list(plain))
            del plain[gone]
            batch.remove(gone)
        else:
            batch.advance()
            plain = {one: index + 1 for one, index in plain.items()}
        assert len(batch) == len(plain)
        assert set(batch) == set(plain)
        expected = {one.request_id: (one.client, one.slot, index) for one, index in plain.items()}
        assert rows(batch.steps()) == expected
        assert all(batch.index_of(one) == index for one, index in plain.items())


def test_a_step_that_was_planned_does_not_change_any_more() -> None:
    client = Client(b"c", "c", 0)
    batch = DecodeBatch()
    first, second = request(client, 1), request(client, 2)
    batch.add(first, 4)
    planned = batch.steps()
    batch.advance()
    batch.add(second, 0)
    batch.remove(first)
    assert rows(planned) == {1: (client, 1, 4)}
    assert rows(batch.steps()) == {2: (client, 2, 0)}


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_whoever_looks_finds_all_tokens_of_a_request_in_order(seed: int) -> None:
    draw = random.Random(seed)
    client = Client(b"c", "c", 0)
    batch, in_flight, gone = DecodeBatch(), list[LaneStep](), set[Request]()
    plain = {(made := request(client, number)): made.token_ids.tolist() for number in range(3)}
    for made in plain:
        batch.add(made, 0)
    for number in range(3, 300):
        what = draw.random()
        if what < 0.03:
            made = request(client, number)
            plain[made] = made.token_ids.tolist()
            batch.add(made, 0)
        elif what < 0.06 and len(batch):
            leaves = draw.choice(list(batch))
            batch.remove(leaves)
            gone.add(leaves)
        elif what < 0.1:
            seen = draw.choice(list(plain))
            assert seen.token_ids.tolist() == plain[seen]
        elif what < 0.55 and len(in_flight) < 2:
            in_flight += batch.steps()
        elif in_flight:
            step = in_flight.pop(0)
            tokens = array(columns.INT32, [draw.randrange(1000) for _ in step.view.requests])
            if gone.isdisjoint(step.view.requests):  # else they are delivered one by one
                step.view.unread.add(step.view, tokens)
                for one, token in zip(step.view.requests, tokens, strict=True):
                    plain[one].append(token)
    assert {one: one.token_ids.tolist() for one in plain} == plain
