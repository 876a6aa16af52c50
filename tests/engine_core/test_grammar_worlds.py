"""Constrained answers, free ones and embeddings in few blocks, while workers die, clients leave and come
back, and grammars answer when they like: everyone gets what it gets alone."""

from functools import partial
from random import Random

import pytest

from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.stream import Parting, TokenStream
from tests.engine_core import rig as rig_module
from tests.engine_core.requests import assert_all_free
from tests.engine_core.rig import Rig
from tests.engine_core.test_grammar import GRAMMAR, MODEL, Later, params
from worker.kv_layout import Window
from worker.stub import StubRunner

GRAMMARS = ["", GRAMMAR, 'start: /[ab]/ "0123456789012345" /[ab]/ "xyz" /[0-9]{3}/', "start: /[a-c]{1,20}/"]
WINDOWS: list[tuple[Window, ...]] = [(None,), (9,), (5, None)]
Task = tuple[str, tuple[int, ...], str, SamplingParams]
"""Key, prompt, grammar, parameters. An embedding's prompt begins with EMBEDS."""
EMBEDS = 7


def make_task(draw: Random, number: int) -> Task:
    head = [EMBEDS if draw.random() < 0.2 else 40 + draw.randrange(2)] * draw.randrange(1, 30)
    prompt = (*head, *(draw.randrange(10, 500) for _ in range(draw.randrange(1, 12))))
    key = f"key {number}" if draw.random() < 0.3 and head[0] != EMBEDS else ""
    wanted = params(seed=draw.randrange(5), max_tokens=draw.choice([5, 20, 50]))
    return key, prompt, draw.choice(GRAMMARS), wanted


def submit(rig: Rig, client: bytes, task: Task) -> TokenStream:
    key, prompt, grammar, wanted = task
    if prompt[0] == EMBEDS:
        return rig.submit(client, prompt, SamplingParams(max_tokens=1, temperature=0), embed=True)
    return rig.submit(client, prompt, wanted, grammar=grammar, key=key, digest="d" if key else "")


def assert_as_alone(stream: TokenStream, task: Task) -> None:
    rig = Rig(model=MODEL)
    rig.client(b"alone")
    alone = submit(rig, b"alone", task)
    rig.settle()
    assert stream.finish, f"{task} never ended"
    assert (stream.finish, stream.token_ids, stream.embedding) == (
        alone.finish,
        alone.token_ids,
        alone.embedding,
    ), task


@pytest.mark.parametrize("seed", range(10))
def test_any_world_ends_with_the_right_answers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Random(seed)
    windows = draw.choice(WINDOWS)
    monkeypatch.setattr(rig_module, "StubRunner", partial(StubRunner, windows=windows))
    options = SchedulerOptions(
        max_num_seqs=draw.choice([2, 4, 8]),
        max_num_batched_tokens=draw.choice([16, 256]),
        enable_chunked_prefill=draw.random() < 0.7,
        async_scheduling=draw.random() < 0.8,
    )
    size, hands = draw.choice([4, 8]), Later()
    cache = CacheOptions(block_size=size, num_kv_blocks=(100 // size + 6) * len(windows))
    rig = Rig(model=MODEL, max_model_len=96, scheduler=options, cache=cache, hands=hands)
    rig.client(b"a")
    rig.client(b"b")
    running: list[tuple[Task, TokenStream]] = []
    for number in range(120):
        match draw.choice(["submit", "kill", "abort", "return", *["turn"] * 12]):
            case "submit" if len(running) < 12:
                task = make_task(draw, number)
                running.append((task, submit(rig, b"a", task)))
            case "kill" if rig.deaths < 5:
                rig.kill_worker()
            case "abort" if running:
                task, stream = running.pop(draw.randrange(len(running)))
                rig.close(b"a", stream, Parting.ABORT)
            case "return" if running:
                task, stream = running.pop(draw.randrange(len(running)))
                running.append((task, submit(rig, draw.choice([b"a", b"b"]), task) if task[0] else stream))
        rig.now += draw.choice([0, 0.001, 0.003])
        rig.turn()
        hands.catch_up(draw.randrange(3))
    while rig.turn() or hands.works:
        hands.catch_up()
        rig.now += 0.003
    for task, stream in running:
        assert_as_alone(stream, task)
    assert_all_free(rig)
