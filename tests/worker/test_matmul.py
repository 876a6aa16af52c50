"""Every kind of matrix multiplies as its dequantized weights would."""

import torch

from worker.kernels import matmul


def test_nibbles_come_back() -> None:
    for columns in (1, 63, 64, 65, 192, 200):
        codes = torch.randint(0, 16, (5, columns), dtype=torch.uint8)
        packed = matmul.pack_int4(codes)
        assert packed.shape == (5, -(-columns // 64) * 32)
        assert torch.equal(matmul.unpack_int4(packed, columns), codes)


def test_rows_are_quantized_by_their_largest() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 4.0]])
    codes, scales = matmul.quantize_rows(x)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0], [4.0]]) / 127)
    codes, scales = matmul.quantize_rows(x, 3)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0, 0.0], [0.0, 4.0]]) / 127)
