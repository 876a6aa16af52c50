"""The start of a server as it is told to a person: phases while it lasts, a banner when it is done.

Knows what children report (`Phase`, `Ready`) and how to say it; decides nothing.
"""

import shlex
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from protocol.control import Phase

from .quantities import amount
from .terminal import Terminal

REPAINT_S = 0.1
"""Least time between two states of one line."""


class Progress:
    """Which process is doing what since when."""

    def __init__(self, terminal: Terminal, now: float) -> None:
        self._terminal = terminal
        self._began = now
        self._phases: dict[str, tuple[Phase, float]] = {}
        self._latest = ""
        self._painted = now
        self._finished: list[tuple[str, float]] = []

    def on_phase(self, process: str, phase: Phase, now: float) -> None:
        """A process began something, or came further with it."""
        before = self._phases.get(process)
        self._latest = process
        if before is not None and before[0].name == phase.name:
            self._phases[process] = (phase, before[1])
            if now - self._painted < REPAINT_S:
                return  # weights may come by the thousand a second
        else:
            self.on_done(process, now)
            self._phases[process] = (phase, now)
            if not self._terminal.rewrites:
                self._terminal.log("info", _sentence(process, phase))
        self.repaint(now)

    def on_done(self, process: str, now: float) -> None:
        """A process has left its phase."""
        before = self._phases.pop(process, None)
        if before is not None:
            phase, since = before
            self._finished.append((f"{process} {phase.name}", now - since))

    def repaint(self, now: float) -> None:
        """Keep the seconds running, where a line can be written over."""
        if not self._terminal.rewrites:
            return
        self._painted = now
        process = self._latest if self._latest in self._phases else next(iter(self._phases), "")
        if process:
            phase, _ = self._phases[process]
            elapsed = f"{now - self._began:5.1f} s  {_sentence(process, phase)}"
            self._terminal.progress(elapsed, phase.fraction)
        else:
            self._terminal.progress(f"{now - self._began:5.1f} s  starting", None)

    def summary(self, now: float) -> str:
        """ "4.9 s (worker importing torch 2.4 s, worker loading weights 0.3 s)" """
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._finished if seconds >= 0.05)
        total = f"{now - self._began:.1f} s"
        return f"{total} ({told})" if told else total


class Serving(Struct, frozen=True):
    """What the banner tells, besides the workers' facts."""

    version: str
    url: str
    model_name: str
    has_api_key: bool
    endpoint_file: str
    workers: int = 1
    has_playground: bool = True


class Memory(Struct, frozen=True):
    """Of the machine, or the container, in bytes, when the server is ready."""

    available: int
    total: int


def banner(
    serving: Serving,
    facts: Mapping[str, str],
    pids: Mapping[str, Sequence[int]],
    headline: str,
    memory: Memory,
) -> str:
    """`facts` are those of the worker's Ready, under the names of protocol.messages.EngineFacts."""
    weights = (
        f", {amount(int(facts['weights_bytes']))} of weights"
        if facts.get("weights_bytes", "0") != "0"
        else ""
    )
    on_network = "://" in serving.url
    rows = {
        "model": f"{serving.model_name} ({facts.get('dtype', '?')} on {facts.get('device', '?')}{weights})",
        "memory": _memory(serving, facts, memory),
        "KV cache": _cache(facts),
        "context": f"{int(facts.get('max_model_len', 0)):,} tokens",
        "page": f"{serving.url}/   {serving.url}/live" if on_network and serving.has_playground else "",
        "API": f"{serving.url}/v1" if on_network else serving.url,
        "health": f"{serving.url}/health/ready   {serving.url}/metrics" if on_network else "",
        "pids": " · ".join(f"{kind} {' '.join(map(str, group))}" for kind, group in pids.items()),
        "endpoint": f"{serving.endpoint_file}  (for EngineClient.attach)",
    }
    table = "\n".join(f"  {name:<10}{value}" for name, value in rows.items() if value)
    return f"\n{headline}\n\n{table}\n\n{curl(serving)}\n\nCtrl-C stops everything.\n"


def curl(serving: Serving) -> str:
    """A line to paste into a shell: a streaming chat."""
    body = {
        "model": serving.model_name,
        "stream": True,
        "messages": [{"role": "user", "content": 'Spell the word "tern".'}],
    }
    key = ' -H "Authorization: Bearer $TERN_API_KEY"' if serving.has_api_key else ""
    socket, at = "", serving.url
    if serving.url.startswith("unix:"):
        socket, at = f"--unix-socket {shlex.quote(serving.url.removeprefix('unix:'))} ", "http://localhost"
    return (
        f"curl -N {socket}{at}/v1/chat/completions{key} -H 'Content-Type: application/json'"
        f" -d {shlex.quote(msgspec.json.encode(body).decode())}"
    )


def _memory(serving: Serving, facts: Mapping[str, str], memory: Memory) -> str:
    """The KV cache is taken as it fills: what is free then is told, not what is free now."""
    weights, cache = (serving.workers * int(facts.get(name, 0)) for name in ("weights_bytes", "kv_bytes"))
    if facts.get("device", "cpu") != "cpu":
        rows = [("weights", weights, "  of the GPUs"), ("KV cache", cache, "")]
    else:
        free = f"  of {amount(memory.total)}, when the KV cache is full"
        rows = [
            ("weights", weights, ""),
            ("KV cache", cache, ""),
            ("free", max(memory.available - cache, 0), free),
        ]
    indent = f"\n{' ' * 12}"
    return indent.join(f"{name:<10}{amount(count):>10}{note}" for name, count, note in rows)


def _cache(facts: Mapping[str, str]) -> str:
    blocks, size = int(facts.get("num_blocks", 0)), int(facts.get("block_size", 0))
    least, most = int(facts.get("least_kv_tokens", 0)), int(facts.get("most_kv_tokens", 0))
    tokens = f"{least:,} tokens" if least == most else f"{least:,} to {most:,} tokens"
    groups = int(facts.get("kv_groups", 1))
    per = f" of one in {groups} groups of layers" if groups > 1 else ""
    taken = amount(int(facts.get("kv_bytes", 0)))
    dtype = facts.get("kv_dtype", "")
    stored = f" of {dtype}" if dtype and dtype != facts.get("dtype") else ""
    return f"{blocks:,} blocks of {size} tokens{per} = {tokens} ({taken}{stored})"


def _sentence(process: str, phase: Phase) -> str:
    return f"{process}: {phase.name} {phase.detail}".rstrip()
