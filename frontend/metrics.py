"""Metrics: what Prometheus scrapes. Knows neither requests nor text, only numbers that others report.

The frontend counts what passes through it; queue, cache and preemptions are the engine core's, asked for
at each scrape. Several frontends share a folder (prometheus_client's multiprocess mode, which reads its
environment variable when it is first imported), so that a scrape of any of them shows all.

Names are those that dashboards for vLLM know, behind a prefix of our own (--metrics-prefix).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from protocol.client import EngineClient
from protocol.errors import Unavailable
from protocol.messages import STEP_TOKENS_BOUNDS, TIME_BOUNDS_S, Distribution, EngineFacts, EngineStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PING_TIMEOUT_S = 0.5
"""A scrape never fails, and hardly waits, because the engine core is away."""
SAMPLE_EVERY = 16
"""One gap between tokens in this many is observed: an observation costs 1 µs, a tenth of a token."""

VLLM_PREFIX = "vllm:"
"""With which every name is vLLM's, also where Prometheus' rules would have another."""

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
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


def _no_restarts() -> Mapping[str, int]:
    return {}


class Metrics:
    """One per frontend. `folder` is shared by all frontends of a server, or empty."""

    def __init__(
        self,
        folder: str = "",
        prefix: str = "tern_",
        restarts: Callable[[], Mapping[str, int]] = _no_restarts,
    ) -> None:
        """`restarts` says how often processes of each kind were started again."""
        registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(prefix + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(prefix + name, text, registry=registry, buckets=buckets)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of accepted requests")
        self.generation_tokens = counter("generation_tokens", "Tokens sent to clients")
        self.finished = counter("request_success", "Answers by reason of their end", "finished_reason")
        self.responses = counter("http_requests", "HTTP requests by status of their answer", "status")
        self.resumed = counter(
            "resumed_streams", "Open streams that went on after a process or a message was lost"
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Until the first token", _LATENCY_S
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds",
            f"Between tokens of an answer; one in {SAMPLE_EVERY} is observed",
            _GAP_S,
        )
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "Mean gap between the tokens of an answer", _GAP_S
        )
        self.decode_time = histogram(
            "request_decode_time_seconds", "From the first token to the last", _WHOLE_S
        )
        self.request_latency = histogram("e2e_request_latency_seconds", "Until the last token", _WHOLE_S)
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Of each request", _TOKENS)
        self.request_generation_tokens = histogram("request_generation_tokens", "Of each answer", _TOKENS)
        self._registry = registry
        if folder:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, path=folder)  # type: ignore[no-untyped-call]
        self._engine = _Engine(prefix, restarts)
        self._engine_registry = CollectorRegistry()
        self._engine_registry.register(self._engine)
        self._num_resumed = 0

    def follow(self, client: EngineClient) -> None:
        """Count what has happened to the client's streams since the last call."""
        if (news := client.resubmitted - self._num_resumed) > 0:
            self._num_resumed += news
            self.resumed.inc(news)

    async def scrape(self, client: EngineClient) -> bytes:
        """All metrics in Prometheus' text format."""
        self.follow(client)
        self._engine.stats, self._engine.facts = None, client.facts
        if client.attached.is_set():
            with suppress(Unavailable):  # engine_up then says 0
                self._engine.stats = (await client.ping(PING_TIMEOUT_S)).stats
        return generate_latest(self._registry) + generate_latest(self._engine_registry)


class Stopwatch:
    """Latencies of one answer, in seconds since it was submitted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.monotonic()
        self._first = 0.0
        self._batches = 0

    def lap(self, num_tokens: int) -> None:
        """A batch of tokens has come. Hot path."""
        batches = self._batches = self._batches + 1
        if batches == 1:
            self._first = time.monotonic()
            self._metrics.time_to_first_token.observe(self._first - self._start)
        elif not (phase := batches % SAMPLE_EVERY):
            self._last = time.monotonic()
        elif phase == 1 and num_tokens:
            gap = (time.monotonic() - self._last) / num_tokens
            self._metrics.inter_token_latency.observe(gap)

    def stop(self, num_tokens: int, reason: str) -> None:
        """The answer has ended; `reason` is its finish_reason, or abort or error."""
        metrics, now = self._metrics, time.monotonic()
        metrics.generation_tokens.inc(num_tokens)
        metrics.finished.labels(reason).inc()
        metrics.request_latency.observe(now - self._start)
        metrics.request_generation_tokens.observe(num_tokens)
        if self._batches:
            metrics.decode_time.observe(now - self._first)
            if num_tokens > 1:
                metrics.time_per_output_token.observe((now - self._first) / (num_tokens - 1))


class _Engine(Collector):
    """Numbers of the last Pong and of the supervisor."""

    def __init__(self, prefix: str, restarts: Callable[[], Mapping[str, int]]) -> None:
        self.stats: EngineStats | None = None
        self.facts: EngineFacts | None = None
        self._prefix = prefix
        self._restarts = restarts

    def collect(self) -> Iterator[Metric]:
        prefix, stats = self._prefix, self.stats
        up = float(stats is not None)
        yield GaugeMetricFamily(f"{prefix}engine_up", "1 if the engine core answers", value=up)
        restarts = CounterMetricFamily(
            f"{prefix}process_restarts", "Processes that were started again, by kind", labels=["process"]
        )
        for kind, count in self._restarts().items():
            restarts.add_metric([kind], count)
        yield restarts
        if self.facts is not None:
            yield self._cache_config(self.facts)
        if stats is not None:
            yield from self._of(stats)

    def _cache_config(self, facts: EngineFacts) -> Metric:
        labels = {"block_size": str(facts.block_size), "num_gpu_blocks": str(facts.num_blocks)}
        family = GaugeMetricFamily(
            f"{self._prefix}cache_config_info",
            "The KV cache: tokens of a block, and blocks",
            labels=[*labels],
        )
        family.add_metric([*labels.values()], 1.0)
        return family

    def _of(self, stats: EngineStats) -> Iterator[Metric]:
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges = {
            "num_requests_running": ("Requests in the running batch", stats.num_running),
            "num_requests_waiting": ("Requests waiting for their turn", stats.num_waiting),
            "num_requests_detached": ("Requests kept for a client that is gone", stats.detached),
            "kv_cache_usage_perc": ("Share of KV blocks in use, 1 is all", used),
        }
        counters = {
            "prefix_cache_queries": ("Prompt tokens looked up", stats.prefix_cache_queries),
            "prefix_cache_hits": ("Prompt tokens found", stats.prefix_cache_hits),
            "num_preemptions": ("Requests put back to waiting for want of blocks", stats.preemptions),
            "engine_steps": ("Steps since the engine core started", stats.steps),
            "engine_dropped_frames": ("Frames that did not decode", stats.dropped_frames),
            "crashed_requests": ("Requests that ended because they crash workers", stats.crashed_requests),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(self._prefix + name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(self._prefix + name, text, value=value)
        times = {
            "request_queue_time_seconds": ("Until the first step on a request", stats.queue_times),
            "request_prefill_time_seconds": ("From that step to the first token", stats.prefill_times),
            "request_inference_time_seconds": ("From that step to the last token", stats.inference_times),
        }
        for name, (text, found) in times.items():
            yield _histogram(self._prefix + name, text, TIME_BOUNDS_S, found)
        name = "iteration_tokens_total" if self._prefix == VLLM_PREFIX else "iteration_tokens"
        text = "Tokens that a step computes, of prompts and answers"
        yield _histogram(self._prefix + name, text, STEP_TOKENS_BOUNDS, stats.step_tokens)


def _histogram(name: str, text: str, bounds: Sequence[float], found: Distribution) -> Metric:
    names = [*(f"{float(bound)}" for bound in bounds), "+Inf"]
    counts = accumulate(found.counts or (0,) * len(names))
    buckets = list(zip(names, map(float, counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=found.total)
