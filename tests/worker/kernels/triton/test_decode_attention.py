import pytest
import torch

from tests.worker.kernels.triton.sequences import Sequences
from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import decode_attention
from worker.kernels.triton.decode_attention import DecodePlan, Scores
from worker.kernels.triton.decode_attention import reference as written_out

SPLIT = 64
"""Small here, so that short sequences consist of several items; two tiles each."""


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "SPLIT", SPLIT)
    monkeypatch.setattr(decode_attention, "TILE", SPLIT // 2)


def attend(
    sequences: Sequences,
    query: torch.Tensor,
    scores: Scores,
    sinks: torch.Tensor | None = None,
    programs: int = 2,
) -> torch.Tensor:
    rows, heads, dim = query.shape
    plan = DecodePlan(rows, 64, heads, dim, query.device)
    plan.partials.fill_(float("nan"))
    plan.stats.fill_(float("nan"))
    decode_attention.plan_decode(plan, sequences.lens, scores.window, num_programs=programs)
    found = decode_attention.decode_attention(
        query,
        sequences.kv,
        sequences.tables,
        sequences.lens,
        plan,
        scores,
        num_programs=programs,
        sinks=sinks,
    )
    assert not plan.finished.any(), "the next layer counts from 0"
    return found


def check(sequences: Sequences, heads: int, scores: Scores, sinks: torch.Tensor | None = None) -> None:
    dim = sequences.kv.cache.shape[-1]
    dtype = torch.float16 if sequences.kv.scales is not None else sequences.kv.cache.dtype
    query = torch.randn(len(sequences.lens), heads, dim).to(sequences.lens.device, dtype)
    found = attend(sequences, query, scores, sinks)
    kv, tables, lens = sequences.on_cpu()
    expected = written_out(query.cpu(), kv, tables, lens, scores, None if sinks is None else sinks.cpu())
    close(found.cpu(), expected)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2), (2, 2)])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_shapes(heads: int, kv_heads: int, dim: int, device: torch.device, dtype: torch.dtype) -> None:
    """One token, one past a block, one past an item, and a row that only pads."""
    lens = [1, 17, 0, SPLIT + 1]
    sequences = Sequences(lens, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype, device=device)
    check(sequences, heads, Scores(dim**-0.5))


@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_block_sizes(block_size: int, device: torch.device) -> None:
    sequences = Sequences(
        [SPLIT, 33], num_kv_heads=1, head_dim=64, block_size=block_size, dtype=torch.float32, device=device
    )
    check(sequences, 2, Scores(0.1))


@pytest.mark.parametrize("window", [1, 17, SPLIT, SPLIT + 1])
def test_windows(window: int, device: torch.device) -> None:
    """Blocks that have left the window may be anything, also gone from the table."""
    lens = [window, window + 1, 2 * SPLIT + 30]
    sequences = Sequences(lens, num_kv_heads=1, head_dim=64, dtype=torch.float32, device=device)
    scores = Scores(0.2, window=window)
    query = torch.randn(3, 2, 64, device=device)
    kv, tables, lengths = sequences.on_cpu()
    expected = written_out(query.cpu(), kv, tables, lengths, scores)
    gone = (lens[2] - window) // 16
    sequences.kv.cache[:, sequences.tables[2, :gone].long()] = float("nan")
    sequences.tables[2, :gone] = -1
    close(attend(sequences, query, scores).cpu(), expected)


def test_soft_cap_and_sinks(device: torch.device) -> None:
    sequences = Sequences([5, SPLIT + 3], num_kv_heads=2, head_dim=64, dtype=torch.float32, device=device)
    check(sequences, 4, Scores(0.5, soft_cap=3.0))
    check(sequences, 4, Scores(0.5), torch.randn(4, device=device))
    check(sequences, 4, Scores(0.5, window=9, soft_cap=3.0), torch.randn(4, device=device))


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantized_caches(stored: torch.dtype, device: torch.device) -> None:
    sequences = Sequences(
        [1, SPLIT + 20], num_kv_heads=2, head_dim=80, dtype=torch.float16, device=device, stored=stored
    )
    check(sequences, 4, Scores(80**-0.5))


@pytest.mark.parametrize("programs", [1, 4, 9, 30])
def test_any_number_of_programs(programs: int, device: torch.device) -> None:
    """Many have smaller items to do."""
    lens = [3 * SPLIT + 7, 40, 2 * SPLIT]
    sequences = Sequences(lens, num_kv_heads=1, head_dim=64, dtype=torch.float32, device=device)
    query = torch.randn(3, 4, 64, device=device)
    found = attend(sequences, query, Scores(0.1), programs=programs)
    kv, tables, lengths = sequences.on_cpu()
    close(found.cpu(), written_out(query.cpu(), kv, tables, lengths, Scores(0.1)))


def test_items_of_a_plan(device: torch.device) -> None:
    plan = DecodePlan(4, 100, 1, 1, device)
    lens = torch.tensor([0, 1, SPLIT, 2 * SPLIT + 1], dtype=torch.int32, device=device)
    decode_attention.plan_decode(plan, lens, num_programs=8)
    assert plan.starts.tolist() == [0, 1, 2, 3, 6]
    assert plan.split.tolist() == [SPLIT]
    decode_attention.plan_decode(plan, lens, 2, num_programs=5)
    assert plan.starts.tolist() == [0, 1, 2, 3, 5], "the window of the last ends in two items"
    decode_attention.plan_decode(plan, lens, num_programs=9)
    assert plan.starts.tolist() == [0, 1, 2, 4, 9], "as there are programs for smaller ones"
    assert plan.split.tolist() == [SPLIT // 2]
