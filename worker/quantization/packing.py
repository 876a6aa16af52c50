"""Small integers in 32-bit words. Knows no checkpoint.

int32[…, words] ── 4 bits: 8 fields, the first in the lowest bits ──▶ uint8[…, 8 · words]
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 32
"""Bits."""


def unpack(words: Tensor, bits: int, order: Sequence[int] = ()) -> Tensor:
    """int32[n, words] → uint8[n, 32 / bits · words], for 4 or 8 bits.

    `order[i]` is the field that holds the i-th number, where they are not in order.
    """
    octets = words.contiguous().view(torch.uint8)  # little-endian, as safetensors and every machine of ours
    codes = octets if bits == 8 else torch.stack((octets & 15, octets >> 4), -1).flatten(1)
    if order:
        codes = codes.reshape(len(codes), -1, len(order))[:, :, list(order)].flatten(1)
    return codes
