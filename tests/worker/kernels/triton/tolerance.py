"""How far a kernel may be from its reference, which computes in float32 from the same inputs.

float32: sums in another order. Half precision: the reference rounds once, so one or two units in the last
place of the result, and for products also of the weights that a kernel rounds before it multiplies.
"""

import torch
from torch import Tensor

RELATIVE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(found: Tensor, expected: Tensor, times: float = 1.0) -> None:
    tolerance = times * RELATIVE[found.dtype]
    scale = max(float(expected.float().abs().max()), 1.0)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)
