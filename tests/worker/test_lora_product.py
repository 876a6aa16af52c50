"""What adapters add to products, in C against torch's."""

import itertools

import pytest
import torch

from tests.worker.native import kernels, threads
from worker.kernels.cpu.library import Library
from worker.kernels.lora import AdapterRows, Factors, NativeProduct, TorchProduct, Update

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""A rounding more or less of numbers of about 3."""
ROWS = [2, 2, 0, -1, 1, 1, 1, 1, 1, 1, 0, -1, 0, 2]


@pytest.fixture(scope="module")
def native() -> Library:
    return kernels()


def updates_of(segments: list[int], k: int, dtype: torch.dtype) -> list[Update]:
    """Three adapters of several ranks, of which the second leaves the first segment as it is."""
    ranks = [[4] * len(segments), [0, *[17] * (len(segments) - 1)], [3, *[16] * (len(segments) - 1)]]
    return [
        [
            Factors(torch.randn(r, k).to(dtype) / k**0.5, torch.randn(n, r).to(dtype), 2 / r) if r else None
            for r, n in zip(of_one, segments, strict=True)
        ]
        for of_one in ranks
    ]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("segments", "k"), [([40], 24), ([33, 7, 600], 100), ([512, 1030], 1027)])
def test_each_row_has_its_own(native: Library, dtype: torch.dtype, segments: list[int], k: int) -> None:
    torch.manual_seed(k)
    updates, rows = updates_of(segments, k, dtype), AdapterRows()
    x, y = torch.randn(len(ROWS), 2 * k).to(dtype)[:, :k], torch.randn(len(ROWS), sum(segments)).to(dtype)
    rows.numbers, rows.some = torch.tensor(ROWS, dtype=torch.int32), True
    rows.order = rows.numbers.argsort(stable=True).int()
    expected, found = y.clone(), y.clone()
    TorchProduct(segments, updates, rows).add_to(expected, x)
    product = NativeProduct(native, segments, updates, rows)
    with threads(native, 3):
        product.add_to(found, x)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(found[3], y[3])

    for count in (1, 2, 5):  # a row does not depend on its company
        for places in itertools.islice(itertools.combinations(range(len(ROWS)), count), 40):
            few = torch.tensor(places)
            rows.numbers, again = torch.tensor(ROWS, dtype=torch.int32)[few], y[few]
            rows.order = rows.numbers.argsort(stable=True).int()
            product.add_to(again, x[few])
            assert torch.equal(again, found[few])


def test_nothing_is_done_for_rows_without_any(native: Library) -> None:
    rows = AdapterRows()
    product = NativeProduct(native, [8], updates_of([8], 4, torch.float32), rows)
    y = torch.randn(3, 8)
    before = y.clone()
    product.add_to(y, torch.randn(3, 4))
    assert torch.equal(y, before)
