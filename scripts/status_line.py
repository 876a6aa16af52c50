"""The line of a busy server: what runs and waits, tokens per second, use of KV blocks and of the cache."""

from protocol.control import Busy


def status_fields(busy: Busy) -> dict[str, float]:
    """Numbers of the interval, for a JSON log. Shares are 0 … 1."""
    before, now, seconds = busy.before, busy.now, max(busy.seconds, 1e-9)
    queries = now.prefix_cache_queries - before.prefix_cache_queries
    hits = now.prefix_cache_hits - before.prefix_cache_hits
    return {
        "running": now.num_running,
        "waiting": now.num_waiting,
        "output_tokens_per_s": round((now.generation_tokens - before.generation_tokens) / seconds, 1),
        "prompt_tokens_per_s": round((now.prompt_tokens - before.prompt_tokens) / seconds, 1),
        "kv_cache_usage": round(1 - now.num_free_blocks / now.num_blocks, 4) if now.num_blocks else 0.0,
        "prefix_cache_hit_rate": round(hits / queries, 4) if queries else 0.0,
        "preemptions": now.preemptions - before.preemptions,
    }


def status_line(busy: Busy) -> str:
    """ "12 running, 3 waiting · 1,234 tok/s out, 5,678 in · KV 43 % · 87 % of prompts cached" """
    fields = status_fields(busy)
    parts = [
        f"{fields['running']:,} running, {fields['waiting']:,} waiting",
        f"{fields['output_tokens_per_s']:,.0f} tok/s out, {fields['prompt_tokens_per_s']:,.0f} in",
        f"KV {fields['kv_cache_usage']:.0%}",
    ]
    if fields["prefix_cache_hit_rate"]:
        parts.append(f"{fields['prefix_cache_hit_rate']:.0%} of prompts cached")
    if fields["preemptions"]:
        parts.append(f"{fields['preemptions']:,} preempted")
    return " · ".join(parts)
