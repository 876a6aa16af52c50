"""Models with sliding windows, planned by the real scheduler in few blocks: the text is transformers' own.

Blocks are released as windows move on, and are soon somebody else's, so that whatever is released too early,
found wrongly, or read from a stale table changes the text.
"""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine_core.clients import Client
from engine_core.finishing import deliver
from engine_core.invariants import check
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from protocol import columns
from protocol.kv_groups import NO_BLOCK
from protocol.messages import Submit
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import StepResult
from tests.parity.families import FAMILIES, WINDOW
from tests.parity.reference import MAX_LEN, Reference, tokens, write_checkpoint
from tests.worker.driver import quiet, worker_config
from worker.runner import TorchRunner

BLOCK_SIZE, CHUNK = 4, 16
MOST_OF_A_WINDOW = (WINDOW - 1 + CHUNK + BLOCK_SIZE - 2) // BLOCK_SIZE + 1
"""Blocks: what the first token of a chunk sees before it, and the chunk."""


class Server:
    """A scheduler and a runner of a checkpoint, one step ahead of the results."""

    def __init__(self, folder: Path, num_blocks: int, scratch: Path) -> None:
        options = SchedulerOptions(max_num_seqs=8, max_num_batched_tokens=CHUNK)
        config = worker_config(folder, scratch, block_size=BLOCK_SIZE, num_kv_blocks=num_blocks)
        self.runner = TorchRunner(replace(config, scheduler=options), quiet)
        self.scheduler = Scheduler(options, CacheOptions(), self.runner.facts)
        self.most_held = [0 for _ in self.runner.facts.kv_groups]
        """Blocks of one request at once, in each KV group."""
        self._results: deque[StepResult] = deque()
        self._client = Client(b"", "test", 0)

    def run(self, prompts: Sequence[Sequence[int]], num_outputs: int) -> list[list[int]]:
        sampling = SamplingParams(temperature=0, max_tokens=num_outputs, ignore_eos=True)
        requests = []
        for number, prompt in enumerate(prompts):
            submit = Submit(number, columns.pack_ids(prompt), sampling)
            requests.append(Request(self._client, submit, self.runner.facts, number))
            self.scheduler.add(requests[-1])
        while self._turn():
            pass
        return [list(request.token_ids[request.num_prompt_tokens :]) for request in requests]

    def _turn(self) -> bool:
        scheduler = self.scheduler
        while len(scheduler.in_flight) < 2 and (planned := scheduler.plan(CHUNK)) is not None:
            self._results.append(self.runner.execute(planned.plan))
        check(scheduler)
        for request in scheduler.running:
            for group, table in enumerate(request.block_tables):
                held = len(table) - table.count(NO_BLOCK)
                self.most_held[group] = max(self.most_held[group], held)
        if not self._results:
            return False
        result = self._results.popleft()
        step = scheduler.settle(result.step)
        assert step is not None
        for request in deliver(step, result).finished:
            scheduler.end(request)
        return True


@pytest.mark.parametrize(("family", "num_blocks"), [("mistral", 24), ("gemma3", 110)])
def test_windows_that_move_on(family: str, num_blocks: int, tmp_path: Path) -> None:
    """Some 560 tokens at once, where all layers' KV of 96 or 220 would fit."""
    model_type, changes = FAMILIES[family]
    folder = write_checkpoint(tmp_path / "model", model_type, **changes)
    server, reference = Server(folder, num_blocks, tmp_path), Reference(folder)
    assert server.runner.facts.max_model_len == MAX_LEN

    shared = tokens(40)
    prompts = [tokens(length, seed=length) for length in (150, 3, 70)]
    prompts += [shared, shared, shared + tokens(9, seed=1), shared[:20] + tokens(30, seed=2)]
    outputs = server.run(prompts, 60)
    for prompt, told in zip(prompts, outputs, strict=True):
        assert reference.is_greedy(prompt, told, 60)
    for group, held in zip(server.runner.facts.kv_groups, server.most_held, strict=True):
        assert held <= (MOST_OF_A_WINDOW if group.window else (150 + 60) // BLOCK_SIZE + 1)
    assert server.scheduler.prefix_hits >= 40

    # Once more, from what is still cached of answers that have left their windows behind.
    known = [prompt + output[:50] for prompt, output in zip(prompts, outputs, strict=True)]
    hits = server.scheduler.prefix_hits
    assert server.run(known[-1:] + known[:2], 10) == [output[50:] for output in outputs[-1:] + outputs[:2]]
    assert server.scheduler.prefix_hits > hits
