"""Metrics: what Prometheus scrapes. Knows neither requests nor text, only numbers that others report.

The frontend counts what passes through it; queue, cache and preemptions are the engine core's, asked for
at each scrape. Several frontends share a folder (prometheus_client's multiprocess mode, which reads its
environment variable when it is first imported), so that a scrape of any of them shows all.
"""

import time
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from protocol.client import EngineClient
from protocol.errors import Unavailable
from protocol.messages import EngineStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PING_TIMEOUT_S = 0.5
"""A scrape never fails, and hardly waits, because the engine core is away."""
SAMPLE_EVERY = 16
"""One gap between tokens in this many is observed: an observation costs 1 µs, a tenth of a token."""

_LATENCY_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_GAP_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1, 2, 5)
_WHOLE_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Metrics:
    """One per frontend. `folder` is shared by all frontends of a server, or empty."""

    def __init__(self, folder: str = "") -> None:
        registry = CollectorRegistry()
        self.prompt_tokens = Counter(
            "tern_prompt_tokens", "Prompt tokens of accepted requests", registry=registry
        )
        self.generation_tokens = Counter(
            "tern_generation_tokens", "Tokens sent to clients", registry=registry
        )
        self.finished = Counter(
            "tern_request_success", "Answers by reason of their end", ["finished_reason"], registry=registry
        )
        self.time_to_first_token = Histogram(
            "tern_time_to_first_token_seconds", "Until the first token", registry=registry, buckets=_LATENCY_S
        )
        self.inter_token_latency = Histogram(
            "tern_inter_token_latency_seconds",
            f"Between tokens of an answer; one in {SAMPLE_EVERY} is observed",
            registry=registry,
            buckets=_GAP_S,
        )
        self.request_latency = Histogram(
            "tern_e2e_request_latency_seconds", "Until the last token", registry=registry, buckets=_WHOLE_S
        )
        self._registry = registry
        if folder:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, path=folder)  # type: ignore[no-untyped-call]
        self._engine = _EngineStats()
        self._engine_registry = CollectorRegistry()
        self._engine_registry.register(self._engine)

    async def scrape(self, client: EngineClient) -> bytes:
        """All metrics in Prometheus' text format."""
        self._engine.stats = None
        if client.attached.is_set():
            with suppress(Unavailable):  # tern_engine_up then says 0
                self._engine.stats = (await client.ping(PING_TIMEOUT_S)).stats
        return generate_latest(self._registry) + generate_latest(self._engine_registry)


class Stopwatch:
    """Latencies of one answer, in seconds since it was submitted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.monotonic()
        self._batches = 0

    def lap(self, num_tokens: int) -> None:
        """A batch of tokens has come. Hot path."""
        batches = self._batches = self._batches + 1
        if batches == 1:
            self._metrics.time_to_first_token.observe(time.monotonic() - self._start)
        elif not (phase := batches % SAMPLE_EVERY):
            self._last = time.monotonic()
        elif phase == 1 and num_tokens:
            gap = (time.monotonic() - self._last) / num_tokens
            self._metrics.inter_token_latency.observe(gap)

    def stop(self, num_tokens: int, reason: str) -> None:
        """The answer has ended; `reason` is its finish_reason, or abort or error."""
        self._metrics.generation_tokens.inc(num_tokens)
        self._metrics.finished.labels(reason).inc()
        self._metrics.request_latency.observe(time.monotonic() - self._start)


class _EngineStats(Collector):
    """Numbers of the last Pong, under the names that dashboards for vLLM know."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        yield GaugeMetricFamily(
            "tern_engine_up", "1 if the engine core answers", value=float(stats is not None)
        )
        if stats is None:
            return
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges = {
            "tern_num_requests_running": ("Requests in the running batch", stats.num_running),
            "tern_num_requests_waiting": ("Requests waiting for their turn", stats.num_waiting),
            "tern_kv_cache_usage_perc": ("Share of KV blocks in use, 1 is all", used),
        }
        counters = {
            "tern_prefix_cache_queries": ("Prompt tokens looked up", stats.prefix_cache_queries),
            "tern_prefix_cache_hits": ("Prompt tokens found", stats.prefix_cache_hits),
            "tern_num_preemptions": ("Requests put back to waiting for want of blocks", stats.preemptions),
            "tern_engine_steps": ("Steps since the engine core started", stats.steps),
            "tern_engine_dropped_frames": ("Frames that did not decode", stats.dropped_frames),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
