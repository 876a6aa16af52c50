"""Data files of tiles: looked up by what is multiplied, refused when broken, found by trying."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from scripts.gpu import tune
from scripts.gpu.shapes import SHAPES
from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import int4_matmul, matmul, tuning
from worker.kernels.triton.tuning import Entry, Product, Tiles, Tuned

SMALL = Tiles(16, 32, 64, 4, 2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Pretends to be this one."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "_gpu", lambda device: "NVIDIA H200 (SXM)")
    tuning.read.cache_clear()
    yield "NVIDIA H200 (SXM)"
    tuning.read.cache_clear()


def keep(gpu: str, *entries: Entry) -> Path:
    return tuning.write(Tuned(gpu, {"torch": "2"}, entries))


def test_without_a_file_the_rule_decides(gpu: str, device: torch.device) -> None:
    assert tuning.tiles(device, Product("bf16 × bf16", 16, 32, 64)) is None
    assert tuning.read("") == {}


def test_products_take_the_tiles_of_their_class(
    gpu: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(gpu, Entry("fp32 × fp32", 16, 48, 64, SMALL._asdict()))
    assert path.name == "nvidia-h200-sxm.json"
    x, weight = torch.randn(3, 64, device=device), torch.randn(48, 64, device=device)
    assert tuning.tiles(device, tuning.product(x, weight.dtype, 3, 48)) == SMALL
    assert tuning.tiles(device, tuning.product(x, weight.dtype, 17, 48)) is None
    assert tuning.tiles(device, tuning.product(x, torch.int8, 3, 48)) is None
    monkeypatch.setattr(matmul, "choose", lambda *_: pytest.fail("there is an entry"))
    close(matmul.matmul(x, weight), matmul.reference(x, weight))


def test_four_bits_take_theirs(gpu: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(gpu, Entry("fp32 × int4", 16, 48, 64, SMALL._asdict()))
    monkeypatch.setattr(int4_matmul, "choose", lambda *_: pytest.fail("there is an entry"))
    packed = int4_matmul.pack(torch.randint(0, 16, (48, 64), dtype=torch.uint8, device=device))
    x, scales = torch.randn(3, 64, device=device), torch.rand(48, 2, device=device)
    found = int4_matmul.int4_matmul(x, packed, scales, None, 32)
    close(found, int4_matmul.reference(x, packed, scales, None, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 24}, "tiles are powers of two"),
        ({"num_warps": 3}, "3 warps"),
        ({"depth": 1}, "depth"),
    ],
)
def test_a_broken_file_is_named(gpu: str, device: torch.device, change: dict[str, int], message: str) -> None:
    path = keep(gpu)
    entry = {"kind": "bf16 × bf16", "rows": 16, "n": 32, "k": 64, "tiles": SMALL._asdict() | change}
    path.write_bytes(msgspec.json.encode({"gpu": gpu, "versions": {}, "products": [entry]}))
    with pytest.raises(ValueError, match=message) as raised:
        tuning.tiles(device, Product("bf16 × bf16", 16, 32, 64))
    assert str(path) in str(raised.value)
    assert "scripts/gpu_check tune" in str(raised.value)


def test_tuning_keeps_what_is_faster_than_the_rule(
    gpu: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are made up: one way of tiling is twice as fast, for one of two products."""
    fast = Product("bf16 × bf16", 16, 32, 64)

    def seconds(calls: list[object], where: torch.device, repetitions: int) -> tuple[float, float, float]:
        (call,) = calls[:1]
        wanted = call.keywords["tiles"] == SMALL and len(call.args[1]) == 32  # type: ignore[attr-defined]
        call()  # type: ignore[operator]
        return (1.0, 1.0, 1.0) if wanted else (2.0, 2.0, 2.0)

    monkeypatch.setattr(tune, "seconds", seconds)
    monkeypatch.setattr(tune, "candidates", lambda product: [SMALL._replace(n=16), SMALL])
    earlier = Product("bf16 × bf16", 16, 1, 1)
    keep(gpu, Entry(*earlier, tiles=SMALL._asdict()), Entry(*fast._replace(n=16), tiles=SMALL._asdict()))
    wanted = [
        fast,
        fast._replace(n=16),
        Product("bf16 × int4", 16, 16, 64),
        Product("int8 × int8", 64, 16, 64),
    ]
    found = list(tune.measure(device, torch.float32, gpu, {"torch": "2"}, wanted))
    assert [m.ratio for m in found] == [2.0, 1.0, 1.0, 1.0]
    assert dict(tuning.read(gpu)) == {earlier: SMALL, fast: SMALL}


def test_products_of_published_models(device: torch.device) -> None:
    wanted = tune.products(torch.device("cpu"))
    assert wanted[:2] == [Product("bf16 × bf16", 16, 6144, 4096), Product("bf16 × bf16", 16, 4096, 4096)]
    assert len(set(wanted)) == len(wanted)
    heads = {(shape.vocab_size, shape.hidden_size) for shape in SHAPES.values()}
    assert heads <= {(product.n, product.k) for product in wanted}
    assert {product.rows for product in wanted if product.kind == "bf16 × bf16"} == {16, 64}
    for product in wanted:
        assert 16 <= len(set(tune.candidates(product))) <= 48
