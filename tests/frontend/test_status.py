"""Health, version and metrics."""

from collections.abc import Callable
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from frontend.metrics import SAMPLE_EVERY
from frontend.service import GenerationDefaults
from protocol.messages import Finish
from tests.frontend.conftest import END
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
NAMES = {
    "tern_num_requests_running",
    "tern_num_requests_waiting",
    "tern_kv_cache_usage_perc",
    "tern_prefix_cache_queries",
    "tern_prefix_cache_hits",
    "tern_num_preemptions",
    "tern_prompt_tokens",
    "tern_generation_tokens",
    "tern_request_success",
    "tern_time_to_first_token_seconds",
    "tern_inter_token_latency_seconds",
    "tern_e2e_request_latency_seconds",
}


async def scrape(http: httpx2.AsyncClient) -> dict[str, dict[str, float]]:
    """family → {sample name with the reason of finishing → value}."""
    response = await http.get("/metrics")
    assert response.status_code == 200
    return {
        family.name: {s.name + s.labels.get("finished_reason", ""): s.value for s in family.samples}
        for family in text_string_to_metric_families(response.text)
    }


async def test_metrics(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer, engine.finish = [*ids("x") * (2 * SAMPLE_EVERY), END], Finish.STOP
    await http.post("/v1/completions", json={"prompt": [9, 9, 9], "max_tokens": 100})
    await http.post("/v1/completions", json={"prompt": [9], "max_tokens": 1})
    found = await scrape(http)
    assert found.keys() >= NAMES
    assert found["tern_prompt_tokens"]["tern_prompt_tokens_total"] == 4
    assert found["tern_generation_tokens"]["tern_generation_tokens_total"] == len(engine.answer) + 1
    success = found["tern_request_success"]
    assert (success["tern_request_success_totalstop"], success["tern_request_success_totallength"]) == (1, 1)
    for name in ("tern_time_to_first_token_seconds", "tern_e2e_request_latency_seconds"):
        assert found[name][f"{name}_count"] == 2
    assert found["tern_num_requests_running"]["tern_num_requests_running"] == 3
    assert found["tern_num_requests_waiting"]["tern_num_requests_waiting"] == 2
    assert found["tern_kv_cache_usage_perc"]["tern_kv_cache_usage_perc"] == 0.75


async def test_a_scrape_without_an_engine_core(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.silent_pings = True
    found = await scrape(http)
    assert found["tern_engine_up"]["tern_engine_up"] == 0
    assert "tern_num_requests_running" not in found
    assert "tern_prompt_tokens" in found


async def test_models(http: httpx2.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "org/tiny"]
    assert (await http.get("/v1/models/org/tiny")).json() == listed["data"][1]
    assert listed["data"][0]["max_model_len"] == 128
    missing = await http.get("/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_version_and_health(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/version")).json()["version"]
    assert (await http.head("/metrics")).status_code == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await http.get(path)).status_code == 200


def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": false, "eos_token_id": 2}')
    assert GenerationDefaults.load(tmp_path).temperature == 0
    path.write_text('{"do_sample": true, "top_p": 0.9}')
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults(do_sample=True, top_p=0.9)


async def test_load(http: httpx2.AsyncClient) -> None:
    found = (await http.get("/load")).json()
    assert found == {"server_load": 5, "num_running": 3, "num_waiting": 2, "kv_cache_usage": 0.75}
