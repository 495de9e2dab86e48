"""Fourier transforms: they mix what they run along, and leave the other dimensions alone."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis
from topoopt.neurons.rules.table import Value, rule

LINES = ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
PLANES = ("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")
SPACES = ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")


@rule(*LINES)
def along_one(out: list[int], x: Value, n: int | None = None, dim: int = -1, *args: Any, **kwargs: Any) -> Value:
    """Along one dimension."""
    return _transformed(out, x, [dim])


@rule(*PLANES)
def along_two(out: list[int], x: Value, s: Any = None, dim: Any = (-2, -1), *args: Any, **kwargs: Any) -> Value:
    """Along two dimensions, the last ones when none are given."""
    return _transformed(out, x, list(dim))


@rule(*SPACES)
def along_many(out: list[int], x: Value, s: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Value:
    """Along several dimensions, all when none are given."""
    return _transformed(out, x, list(range(len(x.dims)) if dim is None else dim))


@rule("fft_fftshift", "fft_ifftshift")
def shifted(out: list[int], x: Value, dim: Any = None) -> Value:
    """Halves swapped."""
    return _transformed(out, x, list(range(len(x.dims)) if dim is None else dim if isinstance(dim, list) else [dim]))


def _transformed(out: list[int], x: Value, along: list[int]) -> Value:
    dims = list(x.dims)
    for d in along:
        x.dims[d].freeze("a Fourier transform runs along it")
        dims[d] = Axis(int(out[d]), "frequencies")
    return Value(dims)
