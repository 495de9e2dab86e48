"""Matrix products in full float32, whatever the user has allowed for the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """No TF32, no bfloat16 products and no autocast inside; the user's settings are put back after.

    TF32 keeps 10 bits of a product's factors, which is an error of 3 % in a distance a tenth of the norms.
    """
    switches = _Legacy() if not hasattr(torch.backends.cuda.matmul, "fp32_precision") else _PerBackend()
    with torch.autocast(x.device.type, enabled=False):
        try:
            yield
        finally:
            switches.restore()


class _PerBackend:
    """The switches of torch 2.9 and later; reading the older ones beside them raises."""

    def __init__(self) -> None:
        self._matmuls: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009
        self._allowed = [m.fp32_precision for m in self._matmuls]
        for matmul, allowed in zip(self._matmuls, self._allowed):
            if allowed not in ("ieee", "none"):
                matmul.fp32_precision = "ieee"

    def restore(self) -> None:
        for matmul, allowed in zip(self._matmuls, self._allowed):
            if allowed not in ("ieee", "none"):
                matmul.fp32_precision = allowed


class _Legacy:
    """The one switch of earlier versions, for every device."""

    def __init__(self) -> None:
        self._allowed = torch.get_float32_matmul_precision()
        if self._allowed != "highest":
            torch.set_float32_matmul_precision("highest")

    def restore(self) -> None:
        if self._allowed != "highest":
            torch.set_float32_matmul_precision(self._allowed)
