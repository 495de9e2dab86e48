"""r_field: the Lipschitz constant of the map that carries one neuron, all others held fixed.

In the continuum of Yang, Poggio, Chuang and Ziyin (arXiv 2510.02670) every neuron is moved by one map x -> x + F(x; X);
r_field = max_i ||dF/dx (x_i; X)||, and dF/dx at neuron i is the i-th diagonal block of the displacement's Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature.krylov import arnoldi, lanczos
from topoopt.curvature.opening import opened
from topoopt.curvature.spectrum import Spectrum
from topoopt.errors import NotDefinedError
from topoopt.sharding import is_sharded

PROBES = 4
"""Random products that estimate the size of each neuron's rows, from above the size of its block."""
CANDIDATES = 16
"""Neurons, the largest by that estimate, whose block's norm is computed."""
STEPS = 8
"""Lanczos products for each of them."""


def field_proximity(
    optimizer: Optimizer,
    loss: Callable[[], Any],
    indices: Tensor,
    *,
    parameters: Sequence[Tensor] | None = None,
    candidates: int = CANDIDATES,
    **options: Any,
) -> float:
    """Estimate r_field of one neuron group: indices (n, d) into the concatenation of `parameters`, flattened.

    The neurons are ranked by a randomised estimate of the Frobenius norm of their rows, which bounds their block's norm,
    and the blocks' norms are computed for the first `candidates` of them, by Lanczos on the symmetric form: with
    n <= `candidates` it is the maximum, else a lower bound.

    Args:
        optimizer: the optimizer whose step is meant.
        loss: see there.
        indices: flat positions of each neuron's weights.
        parameters: what the positions count through; None: the optimizer's parameters in order.
        candidates: neurons whose block's norm is computed.
        options: `spectrum.proximity`'s.
    """
    with opened(optimizer, loss, **options) as spectrum:
        return field_of(spectrum, indices, parameters, candidates)


def field_of(
    spectrum: Spectrum, indices: Tensor, parameters: Sequence[Tensor] | None = None, candidates: int = CANDIDATES
) -> float:
    """The same on a graph that is open already.

    Raises:
        NotDefinedError: for sharded weights.
    """
    if any(is_sharded(p) for p in spectrum.layout.parameters):
        raise NotDefinedError("the weights are sharded over the ranks: r_field is not formed across shards")
    places = _translate(spectrum, indices, parameters)
    n = places.shape[0]
    ranked = range(n) if n <= candidates else _rank(spectrum, places)[:candidates]
    return max((_norm(spectrum, places[i]) for i in ranked), default=float("nan"))


def _translate(spectrum: Spectrum, indices: Tensor, parameters: Sequence[Tensor] | None) -> Tensor:
    """Positions in the operator's flat vectors; weights that the optimizer does not move point past the end."""
    layout = spectrum.layout
    own, total = {}, 0
    for p in layout.parameters:
        own[id(p)] = total
        total += p.numel()
    if parameters is None:
        return indices
    table = torch.full((sum(p.numel() for p in parameters),), total, dtype=torch.int64, device="cpu")
    start = 0
    for p in parameters:
        if id(p) in own:
            table[start : start + p.numel()] = torch.arange(p.numel(), device="cpu") + own[id(p)]
        start += p.numel()
    return table[indices.cpu()]


def _apply(spectrum: Spectrum, places: Tensor, values: Tensor) -> Tensor:
    """The operator on a vector that is `values` at `places` and 0 elsewhere, read at `places`."""
    size = sum(p.numel() for p in spectrum.layout.parameters)
    device = spectrum.layout.parameters[0].device
    places = places.to(device)
    vector = torch.zeros(size + 1, dtype=spectrum.layout.dtype, device=device)
    vector[places.reshape(-1)] = values.to(vector).reshape(-1)
    product = torch.cat([spectrum.apply(vector[:-1]), vector.new_zeros(1)])
    return product[places]


def _rank(spectrum: Spectrum, places: Tensor) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    size = torch.zeros(places.shape[0], device="cpu")
    for _ in range(PROBES):
        signs = torch.randint(0, 2, places.shape, generator=generator, device="cpu").float() * 2 - 1
        size += _apply(spectrum, places, signs).float().square().sum(1).cpu()
    return size.argsort(descending=True).tolist()


def _norm(spectrum: Spectrum, places: Tensor) -> float:
    """Spectral radius of one block (its norm, where the form is symmetric)."""
    start = torch.randn(places.shape[0], generator=torch.Generator().manual_seed(1), device="cpu").to(
        spectrum.layout.parameters[0].device, spectrum.layout.dtype
    )
    run = lanczos if spectrum.symmetric else arnoldi
    ends = run(lambda v: _apply(spectrum, places, v), start, min(STEPS, places.shape[0]))
    return max(abs(ends.low), abs(ends.high))
