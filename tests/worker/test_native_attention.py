"""Paged attention in C: against the torch reference, and the same bits whatever a query's company."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.worker.native import Sequences, kernels, threads
from worker.kernels.cpu.library import Library
from worker.kernels.native_attention import FusedAttention, HeadNorms, NativeAttention, NativeStep
from worker.kernels.paged_kv import PagedKV
from worker.layers.rotary import RopeParameters, Rotary, rotate_

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""One rounding of a result of about 1 in each type; the sums themselves are float32."""


@pytest.fixture(scope="module")
def native() -> Library:
    return kernels()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [8, 24, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (7, 1), (16, 2)])
def test_as_the_reference(native: Library, dtype: torch.dtype, dim: int, heads: int, kv_heads: int) -> None:
    """Decodes and chunks: one token, odd lengths, a full block and one past it, window edges; NaN around."""
    seqs = Sequences([1, 16, 17, 33, 70, 300], heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)
    chunks = [(0, 0, 1), (1, 15, 16), (2, 16, 17), (5, 299, 300), (3, 0, 33), (4, 37, 70)]
    window = {8: 5, 64: 16, 80: 17, 128: 33}.get(dim)
    size = {24: 1, 64: 16, 96: 48}.get(dim, 4)
    got = seqs.step(chunks, size=size, window=window, kernels=native)
    expected = seqs.step(chunks, size=size, window=window, kernels=None)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("heads", "dim", "size", "window"),
    [(6, 8, 4, None), (6, 24, 1, 5), (6, 64, 16, 33), (12, 80, 48, 16), (2, 192, 32, None)],
)
def test_int8_caches_as_the_reference(
    native: Library, dtype: torch.dtype, heads: int, dim: int, size: int, window: int | None
) -> None:
    seqs = Sequences([1, 17, 33, 70, 300], heads=heads, dim=dim, dtype=dtype, stored=torch.int8)
    chunks = [(0, 0, 1), (1, 16, 17), (4, 299, 300), (2, 0, 33), (3, 20, 70)]
    got = seqs.step(chunks, size=size, window=window, kernels=native)
    expected = seqs.step(chunks, size=size, window=window, kernels=None)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [24, 64])
def test_int8_caches_are_written_as_the_reference_writes_them(
    native: Library, dtype: torch.dtype, dim: int
) -> None:
    """To the bit. A vector that is zero, one that ties, and some that are not finite."""
    step = NativeStep(np.array([0, 3]), np.zeros(3, int), np.arange(3), np.array([[1]], np.int32), None)
    qkv = torch.randn(3, 4, dim).to(dtype)
    qkv[0, 2] = 0
    qkv[1, 3], qkv[1, 3, :3] = 127, torch.tensor([0.5, -0.5, 1.5])
    qkv[2, 2, 5], qkv[2, 3, 7] = torch.nan, torch.inf
    kvs = [PagedKV(torch.zeros(2, 3, 1, 4, dim, dtype=torch.int8), torch.ones(2, 3, 1, 4)) for _ in range(2)]
    fused = FusedAttention(native, 2, 0.2, 0, None)
    out = fused(qkv.clone(), kvs[0], step, None, None)
    assert out[2].isnan().all()
    kvs[1].write(qkv[:, 2:], (torch.arange(3) + 4)[:, None] + torch.tensor([0, 12]))
    assert torch.equal(kvs[0].cache, kvs[1].cache)
    torch.testing.assert_close(kvs[0].scales, kvs[1].scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_soft_cap_and_sinks(native: Library, dtype: torch.dtype) -> None:
    seqs = Sequences([40], heads=4, kv_heads=2, dim=64, dtype=dtype)
    sinks = torch.tensor([0.0, 1.0, -2.0, 30.0])
    (got,) = seqs.step([(0, 10, 40)], kernels=native, soft_cap=1.5, sinks=sinks)
    (alone,) = seqs.step([(0, 39, 40)], kernels=native, soft_cap=1.5, sinks=sinks)
    assert torch.equal(alone[0], got[-1])
    keys, values = (x[0].repeat_interleave(2, 1).float() for x in (seqs.keys, seqs.values))
    scores = torch.einsum("qhd,khd->hqk", seqs.queries[0][10:].float(), keys) / 8
    scores = 1.5 * (scores / 1.5).tanh()
    unseen = torch.arange(40) > torch.arange(10, 40)[:, None]
    scores = torch.cat((scores.masked_fill(unseen, -torch.inf), sinks[:, None, None].expand(4, 30, 1)), -1)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :-1], values).flatten(1)
    torch.testing.assert_close(got, expected.to(dtype), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtype", "window", "heads", "kv_heads", "dim", "stored"),
    [
        (torch.float32, None, 4, 2, 64, None),
        (torch.float32, 40, 5, 1, 72, torch.int8),
        (torch.bfloat16, None, 5, 1, 72, None),
        (torch.bfloat16, 300, 4, 2, 32, None),
        (torch.bfloat16, None, 4, 2, 64, torch.int8),
        (torch.float16, None, 3, 3, 16, None),
    ],
)
def test_only_its_own_sequence_decides_a_bit(
    native: Library,
    dtype: torch.dtype,
    window: int | None,
    heads: int,
    kv_heads: int,
    dim: int,
    stored: torch.dtype | None,
) -> None:
    """Alone, in chunks, decoded, in company, on threads, in blocks of any size: the same bits."""
    chance = np.random.default_rng(0)
    length = 620  # three spans, the last one begun
    seqs = Sequences(
        [length, 90, 1, 257], heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, stored=stored
    )
    (whole,) = seqs.step([(0, 0, length)], window=window, kernels=native)
    cuts = sorted({0, length, *chance.integers(1, length, 6).tolist()})
    for size, count in ((16, 1), (7, 3), (512, 2)):
        with threads(native, count):
            chunks = [
                seqs.step([(0, first, end)], size=size, window=window, kernels=native)[0]
                for first, end in pairwise(cuts)
            ]
            assert torch.equal(torch.cat(chunks), whole)
            for end in (1, 32, 33, 256, 257, 513, int(chance.integers(2, length)), length):
                (alone,) = seqs.step([(0, end - 1, end)], size=size, window=window, kernels=native)
                company = [(1, 60, 90), (0, end - 1, end), (2, 0, 1), (3, 0, 257)]
                crowd = seqs.step(company, size=size, window=window, kernels=native)
                assert torch.equal(alone[0], whole[end - 1])
                assert torch.equal(crowd[1][0], whole[end - 1])


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)]
)
@pytest.mark.parametrize("what", ["queries", "keys", "values"])
def test_a_sick_sequence_stays_sick(
    native: Library, dtype: torch.dtype, stored: torch.dtype | None, what: str
) -> None:
    """NaN of its own reaches its results, so that the step can say whose numbers are not finite."""
    seqs = Sequences([40, 40], heads=6, dtype=dtype, stored=stored)
    getattr(seqs, what)[0][39, :, 3] = torch.nan
    for first in (39, 30):  # few rows, and many
        sick, healthy = seqs.step([(0, first, 40), (1, first, 40)], kernels=native)
        assert sick[-1].isnan().any()
        assert healthy.isfinite().all()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("dim", "rotary_dim", "norms"), [(64, 64, True), (80, 32, False), (128, 0, True)])
def test_fused_is_norms_then_rotation_then_write_then_attention(
    native: Library, dtype: torch.dtype, dim: int, rotary_dim: int, norms: bool
) -> None:
    heads, kv_heads, size, lens, counts = 6, 2, 4, np.array([9, 1, 6]), np.array([2, 1, 6])
    torch.manual_seed(dim)
    start = np.concatenate(([0], counts.cumsum()))
    rows = np.repeat(np.arange(3), counts)
    positions = np.arange(9) + (lens - counts - start[:-1])[rows]
    tables = np.array([[4, 0, 2], [5, 7, 7], [1, 3, 7]], dtype=np.int32)
    step = NativeStep(start, rows, positions, tables, None)
    cache = torch.randn(2, 8, kv_heads, size, dim).to(dtype)
    after = cache.clone()
    qkv = torch.randn(9, heads + 2 * kv_heads, dim).to(dtype)
    rotary = Rotary(RopeParameters(), 1e4, rotary_dim or dim, 64, dtype)
    rotary.cover(16)
    cos, sin = rotary.at(torch.from_numpy(positions))
    weights = torch.rand(2, dim) + 0.5
    x = qkv.clone()
    if norms:
        x[:, :heads] = torch.nn.functional.rms_norm(x[:, :heads].float(), (dim,), weights[0], 1e-5).to(dtype)
        keys = x[:, heads : heads + kv_heads]
        keys.copy_(torch.nn.functional.rms_norm(keys.float(), (dim,), weights[1], 1e-5).to(dtype))
    if rotary_dim:
        rotate_(x[:, : heads + kv_heads, :rotary_dim], cos, sin)
    kv = x[:, heads:].view(9, 2, kv_heads, dim).transpose(0, 1)
    after[:, tables[rows, positions // size], :, positions % size] = kv.transpose(0, 1)
    fused = FusedAttention(
        native,
        heads,
        0.2,
        rotary_dim,
        HeadNorms(query=weights[0], key=weights[1], eps=1e-5) if norms else None,
    )
    got = fused(qkv, PagedKV(cache), step, *((cos, sin) if rotary_dim else (None, None)))
    tolerance = 4 * TOLERANCE[dtype]  # the reference rounds up to four times on the way
    torch.testing.assert_close(cache, after, atol=tolerance, rtol=tolerance)
    expected = NativeAttention(native)(x[:, :heads], PagedKV(after), step, 0.2)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_what_it_does_not_support() -> None:
    assert not NativeAttention.supports(20, torch.float32)
    assert not NativeAttention.supports(1032, torch.float32)
    assert not NativeAttention.supports(64, torch.float64)
    assert not NativeAttention.supports(64, torch.bfloat16, torch.float8_e4m3fn)
    assert not NativeAttention.supports(512, torch.bfloat16, torch.int8)
