"""Slots to rows and back, against plain torch."""

from dataclasses import fields

import torch
from torch import Tensor

from worker.kernels.triton import step_rows
from worker.kernels.triton.step_rows import NO_SLOT, DecodeRows

SLOTS, WIDTH, BLOCK_SIZE, NULL_BLOCK, VOCAB = 5, 6, 16, 99, 40
ROWS = [4, NO_SLOT, 0, 2]


def state(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Newest tokens, numbers of computed ones, tables of two groups."""
    computed = torch.tensor([0, 7, 31, 8, 95], dtype=torch.int32)
    tables = torch.arange(2 * SLOTS * WIDTH, dtype=torch.int32).view(2, SLOTS, WIDTH)
    return torch.arange(10, 15).to(device), computed.to(device), tables.to(device)


def test_rows_begin_with_what_their_slots_hold(device: torch.device) -> None:
    found = []
    for begin, where in ((step_rows.begin, device), (step_rows.begin_reference, torch.device("cpu"))):
        rows = DecodeRows.empty(2, 6, WIDTH, where)
        rows.slots[: len(ROWS)] = torch.tensor(ROWS, dtype=torch.int32)
        begin(rows, len(ROWS), *state(where), BLOCK_SIZE, NULL_BLOCK)
        found.append([getattr(rows, field.name).cpu() for field in fields(rows)])
    for ours, right in zip(*found, strict=True):
        assert torch.equal(ours, right)
    _, token_ids, positions, lens, kv_slots, _ = found[0]
    assert token_ids.tolist() == [14, 0, 10, 12, 0, 0]
    assert positions.tolist() == [95, 0, 0, 31, 0, 0]
    assert lens.tolist() == [96, 0, 1, 32, 0, 0]
    assert kv_slots[1, :2].tolist() == [(30 + 24 + 5) * 16 + 15, NULL_BLOCK * 16]


def test_slots_end_with_what_their_rows_sampled(device: torch.device) -> None:
    for advance in (True, False):
        found = []
        for end, where in ((step_rows.end, device), (step_rows.end_reference, torch.device("cpu"))):
            newest, computed, _ = state(where)
            counts = torch.ones(SLOTS, VOCAB, dtype=torch.int32, device=where)
            slots = torch.tensor(ROWS, dtype=torch.int32, device=where)
            sampled = torch.tensor([-2, 33, 39, 0], device=where)
            end(slots, sampled, newest, computed, counts, advance=advance)
            found.append([newest.cpu(), computed.cpu(), counts.cpu()])
        for ours, right in zip(*found, strict=True):
            assert torch.equal(ours, right)
