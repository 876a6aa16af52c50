"""Every measurement on a server, on a real one: a tiny model on the CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.gpu import served
from scripts.gpu.engine import complete_s, steady
from scripts.gpu.floors import Ceilings
from scripts.gpu.results import Measurement
from scripts.gpu.server import Model, Server, Servers
from scripts.gpu.shapes import TINY

CEILINGS = Ceilings(1e10, {"bf16": 1e11})
MODEL = Model(TINY, "int8")
LIMIT_S = 300.0
"""Far more than anything takes, even on a machine that is busy."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    arguments = ["--device", "cpu", "--threads", "1", "--max-model-len", "512", "--num-kv-blocks", "40"]
    folder = tmp_path_factory.mktemp("models")
    found = Servers(folder, [*arguments, "--log-level", "warning"], ready_s=LIMIT_S)
    yield found
    found.close()


@pytest.fixture
def server(servers: Servers) -> Server:
    return servers.get(MODEL, LIMIT_S)


def check(found: Iterator[Measurement], part: str, goals: list[float | None]) -> list[Measurement]:
    every = list(found)
    assert [m.goal for m in every] == goals
    assert {m.part for m in every} == {part}
    assert len({m.name for m in every}) == len(every)
    assert all(m.value > 0 and m.ratio and m.ratio > 0 for m in every)
    return every


def test_one_sequence_and_many(server: Server) -> None:
    (one,) = check(served.decode(server, CEILINGS, context=32, steps=40), "decode", [None])
    assert one.name == "tiny int8, 1 × 32 tokens"
    many = check(
        served.batches(server, CEILINGS, sizes=(4, 2), context=32, steps=40), "batches", [None, None]
    )
    assert [m.at.x for m in many if m.at] == [4, 2]
    assert many[0].limit is not None
    assert one.limit is not None
    assert many[0].limit > one.limit


def test_prompts(server: Server) -> None:
    prompts = ((1, 64), (2, 32))
    found = check(served.prefill(server, CEILINGS, prompts=prompts, repetitions=2), "prefill", [None, None])
    assert [m.name for m in found] == [
        "tiny int8, 1 prompt of 64 tokens",
        "tiny int8, 2 prompts of 32 tokens",
    ]


def test_a_workload_and_the_same_through_http(server: Server) -> None:
    workload = served.nano_vllm_workload(4, 20, 5, 100)
    engine, http = check(served.offline(server, CEILINGS, workload), "offline", [None, 0.95])
    assert http.limit == engine.value


def test_streams_through_http_beside_the_engine(server: Server) -> None:
    found = check(
        served.http(server, CEILINGS, streams=(1, 3), tokens=8, repetitions=1),
        "http",
        [None, 0.95, None, 0.95],
    )
    assert found[1].limit == found[0].value


def test_what_does_not_fit_is_said(server: Server) -> None:
    with pytest.raises(RuntimeError, match="the KV blocks hold 1280 tokens; 1344 would be needed at once"):
        server.ask(steady(server.client, server.prompts(4, 320), 16))
    with pytest.raises(RuntimeError, match="112 tokens came instead of 400"):
        server.ask(complete_s(server.client, served._requests(server, 1, 400)))


def test_time_that_is_up_ends_a_measurement(server: Server) -> None:
    server.end = 0.0
    with pytest.raises(TimeoutError):
        server.ask(complete_s(server.client, served._requests(server, 8, 200)))


def test_a_step_in_a_graph_beside_the_same_without(servers: Servers) -> None:
    """The last one: it ends the server of the others."""
    (found,) = check(served.graphs(servers, MODEL, CEILINGS, LIMIT_S, context=16, steps=32), "graphs", [None])
    assert servers.runs(MODEL._replace(graphs=False))
    assert found.limit is not None


def test_a_server_that_does_not_start_is_not_tried_again(tmp_path: Path) -> None:
    servers = Servers(tmp_path, ["--max-model-len", "nonsense"])
    with pytest.raises(RuntimeError, match="did not get ready"):
        servers.get(MODEL, LIMIT_S)
    with pytest.raises(RuntimeError, match=r"(?s)as before: .*max-model-len"):
        servers.get(MODEL, LIMIT_S)
    servers.close()
