"""With `--batch-invariant on` a request's numbers depend on itself alone, to the bit, in a whole model on the
kernels: alone, in chunks, in a crowd, behind a prefix hit, computed again, and after a restart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams
from tests.worker.driver import Driver, Resident, write_config
from tests.worker.kernels.triton.replayed import open_gpu
from tests.worker.kernels.triton.test_runner import FAMILIES, SMALL, config, runner_on
from worker.kernels.triton.matrices import TritonMatrices

PROMPT = [(7 * i * i + 3) % 64 for i in range(36)]
TELLS = SamplingParams(temperature=0, logprobs=8)
OUTPUTS, KNOWN = 3, 1
MOST = 12
"""Tokens of a prompt in a step."""


@pytest.fixture
def started(tmp_path: Path, device: torch.device) -> Callable[..., Driver]:
    def start(**options: Any) -> Driver:
        model = write_config(tmp_path / "model", **{**SMALL, **FAMILIES["qwen3"], "num_hidden_layers": 1})
        gpu = open_gpu(device, invariant=True)
        return Driver(runner_on(gpu, config(model, tmp_path, num_kv_blocks=80, **options)))

    return start


def told(seq: Resident) -> tuple[list[int], list[dict[int, float]]]:
    return seq.outputs, seq.logprobs


def computed_again(driver: Driver, outputs: list[int]) -> Resident:
    """As after preemption: with the tokens that are known, none of them computed."""
    seq = driver.add(PROMPT, TELLS, outputs=outputs)
    driver.run([seq], OUTPUTS, chunk=MOST)
    return seq


def test_nothing_but_itself_changes_a_bit(started: Callable[..., Driver]) -> None:
    driver = started()
    alone = driver.add(PROMPT, TELLS)
    driver.run([alone], OUTPUTS, chunk=MOST)
    driver.drop(alone, keep_blocks=True)
    hit = driver.add(PROMPT, TELLS, shared=[alone.tables[0][:7]])
    company = driver.add(PROMPT[:5], SamplingParams(seed=3))
    driver.run([company, hit], OUTPUTS, chunk=8)
    driver.drop(hit)
    again = computed_again(driver, alone.outputs[:KNOWN])
    assert told(hit) == told(alone), "behind a prefix hit, in company and other chunks"
    assert (again.outputs, again.logprobs) == (alone.outputs, alone.logprobs[KNOWN:])
    restarted = started(eager=True)
    seq = restarted.add(PROMPT, TELLS)
    restarted.run([seq], OUTPUTS, chunk=9)
    assert told(seq) == told(alone), "after a restart, in other chunks, without graphs"


@pytest.mark.parametrize("invariant", [True, False])
def test_without_it_some_bits_change(invariant: bool, device: torch.device) -> None:
    """One row alone is multiplied by other sums than among others: so the test above can fail."""
    weight, x = torch.randn(64, 1031), torch.randn(2, 1031, device=device)
    dense = TritonMatrices(device, invariant=invariant).dense([weight], None)
    alone, among = dense.multiply(x[:1])[0], dense.multiply(x)[0]
    assert torch.equal(alone, among) == invariant
    torch.testing.assert_close(alone, among, atol=1e-4, rtol=1e-4)
