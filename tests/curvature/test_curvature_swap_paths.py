"""r_pair is a stretch of the displacement map itself: no larger than its Jacobian's norm on the way to the swapped neurons.

Swapping neurons i and j moves the weights by sqrt(2) |x_i - x_j| and, by equivariance, the displacement by
sqrt(2) |D_i - D_j|. So |D_i - D_j| / |x_i - x_j| is at most the largest ||dD/dtheta|| on the straight way between.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian

from topoopt.geometry import compare

N, INPUTS = 4, 2
POINTS = 33
"""Places on each path where the Jacobian is taken."""


def loss_on(x: Tensor, y: Tensor):
    """Mean squared error of sum_i a_i tanh(w_i x + b_i), as a function of flat neurons (N * (INPUTS + 2))."""

    def loss(flat: Tensor) -> Tensor:
        neurons = flat.view(N, INPUTS + 2)
        hidden = torch.tanh(x @ neurons[:, :INPUTS].T + neurons[:, INPUTS])
        return (hidden @ neurons[:, INPUTS + 1] - y).square().mean()

    return loss


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.3, 2.0), lr=st.floats(0.01, 1.0))
def test_no_pair_is_stretched_more_than_the_map(seed: int, scale: float, lr: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randn(16, generator=generator, dtype=torch.float64)
    neurons = scale * torch.randn(N, INPUTS + 2, generator=generator, dtype=torch.float64)
    loss = loss_on(x, y)

    step = compare(neurons, neurons - lr * grad(loss)(neurons.flatten()).view_as(neurons))
    i, j = step.gain_pair
    swapped = neurons.clone()
    swapped[[i, j]] = neurons[[j, i]]
    shares = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    path = [neurons.flatten().lerp(swapped.flatten(), share) for share in shares]
    largest = max(float(torch.linalg.matrix_norm(lr * hessian(loss)(point), 2)) for point in path)
    assert step.gain <= largest * 1.01  # the largest norm may lie between two places


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_near_twins_are_stretched_as_one_block_of_the_map(seed: int) -> None:
    """Near twins attain the norm of the map at their own place: that of one block, where the others' shares cancel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randn(16, generator=generator, dtype=torch.float64)
    twins = torch.randn(1, INPUTS + 2, generator=generator, dtype=torch.float64).repeat(N, 1)
    apart = torch.randn(N, INPUTS + 2, generator=generator, dtype=torch.float64)
    loss = loss_on(x, y)
    # Along the direction in which the difference of two twins is stretched most, g attains the norm of that block.
    flat = twins.flatten()
    h = hessian(loss)(flat).view(N, INPUTS + 2, N, INPUTS + 2)
    block = h[0, :, 0, :] - h[0, :, 1, :]
    values, vectors = torch.linalg.eigh(block)
    top = vectors[:, values.abs().argmax()]
    neurons = twins + 1e-3 * apart
    neurons[1] = neurons[0] + 1e-5 * top
    moved = neurons - 0.1 * grad(loss)(neurons.flatten()).view_as(neurons)
    u, v = neurons[0] - neurons[1], (moved - neurons)[0] - (moved - neurons)[1]
    assert (
        abs(float(v.norm() / u.norm()) - 0.1 * float(values.abs().max()))
        < 0.05 * 0.1 * float(values.abs().max()) + 1e-4
    )
