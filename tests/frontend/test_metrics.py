"""The format of /metrics: promtool's rules, and promtool itself where it is installed."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontend.metrics import Metrics
from protocol.client import EngineClient
from tests.frontend.conftest import MakeService, asgi_client
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

UNITS = {"milliseconds", "ms", "minutes", "hours", "kilobytes", "kb", "mb", "percent"}


def lint(text: str) -> Iterator[str]:
    """What promtool's `check metrics` says of names, types and help texts."""
    for family in text_string_to_metric_families(text):
        words = set(family.name.lower().split("_"))
        if not family.documentation:
            yield f"{family.name}: no help text"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", family.name):
            yield f"{family.name}: not in snake case, or with a colon"
        if words & UNITS:
            yield f"{family.name}: not in base units"
        if words & {"counter", "gauge", "histogram", "metric"}:
            yield f"{family.name}: its type in its name"
        if family.type == "gauge" and family.name.endswith(("_total", "_count", "_sum", "_bucket")):
            yield f"{family.name}: a suffix of another type"
        for sample in family.samples:
            if family.type != "counter" and family.name.endswith("_total"):
                yield f"{family.name}: the suffix of a counter"
            if family.type == "counter" and not sample.name.endswith(("_total", "_created")):
                yield f"{sample.name}: a counter without _total"
            if "__" in sample.name or any("__" in label for label in sample.labels):
                yield f"{sample.name}: a double underscore"


def promtool(text: str) -> str:
    """What it says; nothing where it is not installed."""
    path = shutil.which("promtool")
    if path is None:
        return ""
    done = subprocess.run([path, "check", "metrics"], input=text, capture_output=True, text=True)
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


async def test_prometheus_likes_every_metric(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.answer = [40]
    await http.post("/v1/completions", json={"prompt": [9], "max_tokens": 1})
    text = (await http.get("/metrics")).text
    assert list(lint(text)) == []
    assert promtool(text) == ""


async def test_the_prefix_is_everywhere(engine: FakeEngine) -> None:
    client = EngineClient("test")
    client.reattach(engine.endpoint)
    await asyncio.wait_for(client.attached.wait(), DEADLINE_S)
    text = (await Metrics(prefix="vllm:", restarts=lambda: {"worker": 2}).scrape(client)).decode()
    await client.close()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families
    assert all(name.startswith("vllm:") for name in families)
    assert "vllm:iteration_tokens_total" in families, "which Prometheus' rules would not allow"
    [restarts] = families["vllm:process_restarts"].samples
    assert (restarts.labels, restarts.value) == ({"process": "worker"}, 2)


async def test_statuses_are_counted(http: httpx2.AsyncClient) -> None:
    await http.get("/nowhere")
    await http.get("/health/live")
    text = (await http.get("/metrics")).text
    assert 'tern_http_requests_total{status="404"} 1.0' in text
    assert 'tern_http_requests_total{status="200"} 1.0' in text


@pytest.mark.parametrize("path", ["/llm/health/live", "/health/live"])
async def test_a_root_path_is_taken_off(make_service: MakeService, path: str) -> None:
    async with asgi_client(make_service(root_path="/llm")) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get("/llmhealth/live")).status_code == 404
