"""The engine core over real sockets: answers, refusals, restarts of either side."""

import asyncio
from collections.abc import Callable

import pytest
import zmq

from protocol import columns
from protocol.client import EngineClient, TokenStream
from protocol.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from protocol.messages import Attach, AttachRefused, EngineMessage, Finish, Refused, Submit
from protocol.sampling import SamplingParams
from protocol.sockets import Dealer
from tests.conftest import DEADLINE_S
from tests.engine_core.conftest import MiniStack
from tests.simulation.simulator import alone

LONG = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0)


def expected(prompt: list[int], sampling: SamplingParams, max_model_len: int = 512) -> list[int]:
    return alone(Submit(1, columns.pack_ids(prompt), sampling), max_model_len)


async def collect(stream: TokenStream) -> list[int]:
    async for _ in stream:
        pass
    return stream.token_ids


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own timeout is the deadline."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_many_streams_get_what_each_would_get_alone(client: EngineClient) -> None:
    prompts = [[i % 7, i, 3] * (1 + i % 20) for i in range(64)]
    params = [SamplingParams(max_tokens=1 + i, temperature=i % 2, seed=i) for i in range(64)]
    streams = [client.submit(prompt, sampling) for prompt, sampling in zip(prompts, params, strict=True)]
    answers = await asyncio.gather(*map(collect, streams))
    for prompt, sampling, answer in zip(prompts, params, answers, strict=True):
        assert answer == expected(prompt, sampling)
    assert client.num_streams == 0
    stats = (await client.ping(DEADLINE_S)).stats
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_running == stats.num_waiting == 0
    assert stats.generation_tokens == sum(map(len, answers))


async def test_finish_says_why(client: EngineClient) -> None:
    free = await collect(client.submit([5], SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)))
    stream = client.submit([5], SamplingParams(max_tokens=50, temperature=0, stop_token_ids=(free[3],)))
    assert await collect(stream) == free[: free.index(free[3]) + 1]
    assert stream.finish is Finish.STOP
    stream = client.submit([5], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert len(await collect(stream)) == 2
    assert stream.finish is Finish.LENGTH
    stream = client.submit([5] * 510, LONG)
    assert len(await collect(stream)) == 2  # the context is full
    assert stream.finish is Finish.LENGTH


async def test_same_prompt_again_is_found_in_the_prefix_cache(client: EngineClient) -> None:
    prompt = list(range(100))
    sampling = SamplingParams(max_tokens=4, temperature=0)
    first, again = client.submit(prompt, sampling), client.submit(prompt, sampling)
    assert await collect(first) == await collect(again)
    assert first.num_cached_tokens == 0
    assert again.num_cached_tokens == 96  # whole blocks of 16, even within the same step
    other = client.submit(prompt, sampling, cache_salt="salt")
    assert await collect(other) == first.token_ids
    assert other.num_cached_tokens == 0
    assert (await client.control("reset_prefix_cache")).ok
    once_more = client.submit(prompt, sampling)
    await collect(once_more)
    assert once_more.num_cached_tokens == 0


async def test_logprobs_arrive_with_their_tokens(client: EngineClient) -> None:
    plain = client.submit([9, 9], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    stream = client.submit(list(range(40)), sampling)
    logprobs = []
    async for batch in stream:
        assert batch.logprobs is not None
        assert len(batch.logprobs) == len(batch.token_ids)
        logprobs += batch.logprobs
    assert [entry.top[0][0] for entry in logprobs] == stream.token_ids
    assert sorted(stream.prompt_logprobs) == list(range(1, 40))
    assert all(entry.top[0][0] == position for position, entry in stream.prompt_logprobs.items())
    await collect(plain)


async def test_bad_requests_are_refused_by_name(client: EngineClient) -> None:
    cases: list[tuple[list[int], type[Exception], str]] = [
        ([], InvalidRequest, "empty"),
        ([512], InvalidRequest, "0 … 511"),
        ([-1], InvalidRequest, "0 … 511"),
        ([1] * 512, ContextLengthExceeded, "512 tokens"),
    ]
    for prompt, error, words in cases:
        with pytest.raises(error, match=words):
            await collect(client.submit(prompt, LONG))
    with pytest.raises(InvalidRequest, match="logit_bias names token 600"):
        await collect(client.submit([1], SamplingParams(logit_bias=((600, 1.0),))))
    with pytest.raises(InvalidRequest, match="resumed"):
        await collect(client.submit([1], SamplingParams(max_tokens=1), resumed_token_ids=[1, 2]))
    assert await collect(client.submit([1], LONG)) == expected([1], LONG)


async def test_abort_and_deadline_free_the_blocks(client: EngineClient) -> None:
    stream = client.submit([1, 2, 3], LONG)
    await anext(stream)
    stream.close()
    late = client.submit([1] * 100, LONG, timeout_s=0.001)
    with pytest.raises(DeadlineExceeded):
        await collect(late)
    while (stats := (await client.ping(DEADLINE_S)).stats).num_running:
        pass
    assert stats.num_free_blocks == stats.num_blocks


async def test_a_resumed_answer_goes_on_where_it_was(client: EngineClient) -> None:
    whole = await collect(client.submit([4, 2], SamplingParams(max_tokens=60, temperature=1, seed=7)))
    for have in (1, 30, len(whole)):
        sampling = SamplingParams(max_tokens=60, temperature=1, seed=7)
        stream = client.submit([4, 2], sampling, resumed_token_ids=whole[:have])
        assert await collect(stream) == whole
        assert stream.finish in (Finish.STOP, Finish.LENGTH)


@pytest.mark.parametrize("victim", ["worker", "engine core", "both"])
async def test_streams_go_on_when_a_process_is_replaced(mini_stack: MiniStack, victim: str) -> None:
    engine_at = mini_stack.start_engine()
    mini_stack.start_worker()
    client = await EngineClient.attach(engine_at.clients_endpoint)
    prompts = [[i, i + 1] * 10 for i in range(16)]
    streams = [client.submit(prompt, LONG) for prompt in prompts]
    for stream in streams:
        await anext(stream)
    if victim in ("engine core", "both"):
        mini_stack.stop_engine()
        client.reattach(mini_stack.start_engine().clients_endpoint)
    if victim in ("worker", "both"):
        mini_stack.stop_worker()
        mini_stack.start_worker()
    answers = await asyncio.gather(*map(collect, streams))
    assert answers == [expected(prompt, LONG) for prompt in prompts]
    await client.close()


async def test_strangers_follow_the_endpoint_file(mini_stack: MiniStack) -> None:
    address = mini_stack.run_dir / "endpoint"
    address.write_text(mini_stack.start_engine().clients_endpoint)
    mini_stack.start_worker()
    client = await EngineClient.attach(str(address))
    stream = client.submit([8], LONG)
    await anext(stream)
    mini_stack.stop_engine()
    address.write_text(mini_stack.start_engine().clients_endpoint)
    assert await collect(stream) == expected([8], LONG)
    assert client.resubmitted == 1
    await client.close()


async def test_a_lost_message_is_a_gap_and_the_stream_is_submitted_again(client: EngineClient) -> None:
    stream = client.submit([6, 6], LONG)
    await anext(stream)
    assert client._dealer is not None
    lost = client._dealer.drain()
    while not lost:
        lost = client._dealer.drain()
    assert await collect(stream) == expected([6, 6], LONG)
    assert client.gaps >= 1


async def test_another_protocol_is_refused_with_a_remedy(mini_stack: MiniStack) -> None:
    engine_at = mini_stack.start_engine()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer: Dealer[EngineMessage, Attach] = Dealer(context, EngineMessage)
    dealer.connect(engine_at.clients_endpoint)
    dealer.send(Attach(999, "other", "stranger"))
    dealer.socket.poll(10_000)
    [answer] = dealer.drain()
    assert isinstance(answer, AttachRefused)
    assert "install the same version" in answer.message
    dealer.close()
    context.term()


async def test_garbage_is_counted_and_dropped(client: EngineClient, mini_stack: MiniStack) -> None:
    assert mini_stack.engine_at is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger: Dealer[EngineMessage, Submit] = Dealer(context, EngineMessage)
    stranger.connect(mini_stack.engine_at.clients_endpoint)
    for garbage in (b"", b"\xc1", b"\x90", b"\xdd\xff\xff\xff\xff", b"\x92\xa6attach\xff", b"[" * 100_000):
        stranger.socket.send(garbage)
    stranger.send(Submit(1, columns.pack_ids([1]), SamplingParams()))  # without Attach
    stranger.socket.poll(10_000)
    [answer] = stranger.drain()
    assert isinstance(answer, Refused)
    assert answer.retryable
    assert (await client.ping(DEADLINE_S)).stats.dropped_frames == 6
    assert await collect(client.submit([1], LONG)) == expected([1], LONG)
    stranger.close()
    context.term()


async def test_too_many_waiting_requests_are_refused(mini_stack: MiniStack) -> None:
    from protocol.options import SchedulerOptions

    mini_stack.scheduler = SchedulerOptions(max_num_seqs=1, max_num_waiting=2, max_num_batched_tokens=64)
    engine_at = mini_stack.start_engine()
    mini_stack.start_worker()
    client = await EngineClient.attach(engine_at.clients_endpoint)
    running = client.submit([1], LONG)
    await anext(running)
    waiting = [client.submit([2], LONG) for _ in range(2)]
    with pytest.raises(Overloaded):
        await collect(client.submit([3], LONG))
    assert await asyncio.gather(*map(collect, waiting)) == [expected([2], LONG)] * 2
    await client.close()


async def test_an_adapter_that_is_not_loaded_is_refused_by_name(client: EngineClient) -> None:
    with pytest.raises(ModelNotFound, match="adapter 'x' is not loaded; loaded: none"):
        await collect(client.submit([1], LONG, adapter="x"))
