"""Log-probabilities in the shape of the wire, against log_softmax."""

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.sampling import SamplingParams
from protocol.stream import unpack_logprobs
from worker.logprobs import LogprobReports

VOCAB = 40


class Model:
    """Its hidden states are its logits."""

    vocab_size = VOCAB

    def logits(self, x: Tensor) -> Tensor:
        return x


def reports(*params: SamplingParams) -> LogprobReports:
    found = LogprobReports(len(params))
    for slot, one in enumerate(params):
        found.start(slot, one)
    return found


def test_tokens_that_were_asked_for_come_first() -> None:
    found = reports(
        SamplingParams(logprobs=0, logprob_token_ids=(7, 3, 30)), SamplingParams(logprobs=2), SamplingParams()
    )
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    slots = np.array([0, 1])
    assert found.rows(np.arange(3)).tolist() == [0, 1]
    block = found.block(logits, torch.tensor([5, 6]), slots, slots)
    (_, asked), (_, likeliest) = unpack_logprobs(block)
    expected = logits.log_softmax(-1)
    assert asked.logprob == pytest.approx(float(expected[0, 5]))
    assert [token for token, _ in asked.top] == [7, 3, 30]
    assert [value for _, value in asked.top] == pytest.approx(expected[0, [7, 3, 30]].tolist())
    assert [token for token, _ in likeliest.top] == logits[1].topk(3).indices.tolist()
    found.start(0, SamplingParams(logprobs=1))
    again = unpack_logprobs(found.block(logits, torch.tensor([5, 6]), slots, slots))
    assert [token for token, _ in again[0][1].top] == logits[0].topk(2).indices.tolist()


def test_ranks_of_a_prompts_tokens() -> None:
    found = reports(SamplingParams(prompt_logprobs=1))
    logits = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(1))
    there = torch.arange(9)
    rows = unpack_logprobs(found.prompt_block(Model(), logits, there, 0))
    order = logits.argsort(-1, descending=True)
    for position, logprob in rows:
        assert logprob.rank == order[position].tolist().index(position) + 1
        assert logprob.top[0][0] == int(order[position, 0])
