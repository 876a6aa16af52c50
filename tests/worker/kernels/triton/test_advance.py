from dataclasses import astuple

import torch

from worker.kernels.triton.advance import DecodeInputs, advance, reference

NULL_SLOT = 900


def test_inputs_of_the_next_step(device: torch.device) -> None:
    """Inside a block, into the next one, a row that only pads, and one beyond its table."""
    both = []
    for step, where in ((advance, device), (reference, torch.device("cpu"))):
        inputs = DecodeInputs.empty(4, 3, NULL_SLOT, where)
        inputs.block_tables[:] = torch.tensor([[5, 2, 7]], dtype=torch.int32)
        inputs.context_lens[:] = torch.tensor([3, 16, 0, 48], dtype=torch.int32)
        step(inputs, torch.tensor([11, 12, 13, 14], device=where), 16, NULL_SLOT)
        both.append([part.cpu() for part in astuple(inputs)])
    for found, expected in zip(*both, strict=True):
        assert torch.equal(found, expected)
    token_ids, positions, context_lens, slots, _ = both[0]
    assert token_ids.tolist() == [11, 12, 0, 14]
    assert positions.tolist() == [3, 16, 0, 48]
    assert context_lens.tolist() == [4, 17, 0, 49]
    assert slots.tolist() == [5 * 16 + 3, 2 * 16, NULL_SLOT, NULL_SLOT]
