import pytest
import torch

from tests.worker.kernels.triton.sequences import Sequences
from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import prefill_attention
from worker.kernels.triton.decode_attention import NO_WINDOW, Scores

M, TILE = 16, 32


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short prompts consist of several programs and tiles."""
    monkeypatch.setattr(prefill_attention, "product_rows", lambda *_: M)
    monkeypatch.setattr(prefill_attention, "key_tile", lambda *_: TILE)


def starts(counts: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=device)


def check(
    sequences: Sequences, counts: list[int], heads: int, scores: Scores, sinks: torch.Tensor | None = None
) -> None:
    """The last counts[row] positions of each row are queries."""
    dim = sequences.kv.cache.shape[-1]
    dtype = torch.float16 if sequences.kv.scales is not None else sequences.kv.cache.dtype
    query = torch.randn(sum(counts), heads, dim).to(sequences.lens.device, dtype)
    start = starts(counts, query.device)
    found = prefill_attention.prefill_attention(
        query, sequences.kv, sequences.tables, start, sequences.lens, scores, sinks=sinks
    )
    kv, tables, lens = sequences.on_cpu()
    expected = prefill_attention.reference(
        query.cpu(), kv, tables, start.cpu(), lens, scores, sinks=None if sinks is None else sinks.cpu()
    )
    close(found.cpu(), expected)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2), (2, 2)])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_shapes(heads: int, kv_heads: int, dim: int, device: torch.device, dtype: torch.dtype) -> None:
    """One token, a whole prompt one past a block, an empty row, and a chunk behind a prefix."""
    sequences = Sequences([1, 17, 0, 70], num_kv_heads=kv_heads, head_dim=dim, dtype=dtype, device=device)
    check(sequences, [1, 17, 0, 5], heads, Scores(dim**-0.5))


@pytest.mark.parametrize("window", [1, 9, TILE, TILE + 1])
def test_windows(window: int, device: torch.device) -> None:
    sequences = Sequences([window, 75, 40], num_kv_heads=1, head_dim=64, dtype=torch.float32, device=device)
    check(sequences, [window, 20, 1], 2, Scores(0.2, window=window))


def test_soft_cap_sinks_and_block_sizes(device: torch.device) -> None:
    for block_size in (1, 32):
        sequences = Sequences(
            [33, 9], num_kv_heads=1, head_dim=64, block_size=block_size, dtype=torch.float32, device=device
        )
        check(sequences, [4, 9], 2, Scores(0.5, soft_cap=3.0), torch.randn(2, device=device))
        check(sequences, [4, 9], 2, Scores(0.5, window=7), torch.randn(2, device=device))


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantized_caches(stored: torch.dtype, device: torch.device) -> None:
    sequences = Sequences(
        [18, 40], num_kv_heads=2, head_dim=80, dtype=torch.float16, device=device, stored=stored
    )
    check(sequences, [18, 3], 4, Scores(80**-0.5))


@pytest.mark.parametrize("window", [NO_WINDOW, 20])
def test_how_a_prompt_is_cut_changes_no_bit(window: int, device: torch.device) -> None:
    sequences = Sequences([50], num_kv_heads=1, head_dim=64, dtype=torch.float32, device=device)
    query, scores = torch.randn(50, 2, 64, device=device), Scores(0.1, window=window)

    def attend(begin: int, end: int) -> torch.Tensor:
        lens = torch.tensor([end], dtype=torch.int32, device=device)
        start = starts([end - begin], device)
        return prefill_attention.prefill_attention(
            query[begin:end], sequences.kv, sequences.tables, start, lens, scores
        )

    whole = attend(0, 50)
    assert torch.equal(torch.cat((attend(0, 11), attend(11, 48), attend(48, 50))), whole)
