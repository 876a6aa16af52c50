"""The line of a busy server."""

from protocol.control import Busy
from protocol.messages import EngineStats
from scripts.status_line import status_fields, status_line

BEFORE = EngineStats(
    prompt_tokens=1000, generation_tokens=500, prefix_cache_queries=100, prefix_cache_hits=50
)
NOW = EngineStats(
    num_running=12, num_waiting=3456, num_free_blocks=57, num_blocks=100, prompt_tokens=57780,
    generation_tokens=12840, prefix_cache_queries=300, prefix_cache_hits=224, preemptions=2,
)  # fmt: skip


def test_rates_are_those_of_the_interval() -> None:
    assert status_line(Busy(10.0, BEFORE, NOW)) == (
        "12 running, 3,456 waiting · 1,234 tok/s out, 5,678 in · KV 43% · 87% of prompts cached · 2 preempted"
    )
    assert status_fields(Busy(10.0, BEFORE, NOW)) == {
        "running": 12, "waiting": 3456, "output_tokens_per_s": 1234.0, "prompt_tokens_per_s": 5678.0,
        "kv_cache_usage": 0.43, "prefix_cache_hit_rate": 0.87, "preemptions": 2,
    }  # fmt: skip


def test_what_there_is_not_is_left_out() -> None:
    assert status_line(Busy(0.0, EngineStats(), EngineStats())) == (
        "0 running, 0 waiting · 0 tok/s out, 0 in · KV 0%"
    )
