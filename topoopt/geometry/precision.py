"""Matrix products in full float32, whatever the user has allowed for the model's own.

The switches that allow TF32 and bfloat16 belong to the whole process, so they are read here and never set: another thread
would see it. Where one is on, the product is taken in float64 instead, a stretch of the inner dimension at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWERED = frozenset({"tf32", "bf16"})
"""TF32 keeps 10 bits of a product's factors, which is an error of 3 % in a distance a tenth of the norms."""
STRETCH = 1 << 10
"""Columns that are turned to float64 at a time."""


def lowered(device: torch.device) -> bool:
    """Whether a device may take float32 products in less than float32; reads switches, sets none."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9 there is one switch
        return torch.get_float32_matmul_precision() != "highest"
    on_cpu = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009
    return (on_cpu if device.type == "cpu" else torch.backends.cuda.matmul).fp32_precision in LOWERED


def minus_twice_product_(sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take 2 a b^T off `sums` in place, in the full precision of the arguments: (n, m), (n, d), (m, d) -> (n, m)."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype is torch.float64 or not lowered(a.device):
            return sums.addmm_(a, b.T, alpha=-2)
        found = sums.double()
        for x, y in zip(a.split(STRETCH, dim=1), b.split(STRETCH, dim=1)):
            found.addmm_(x.double(), y.double().T, alpha=-2)
        return sums.copy_(found)
