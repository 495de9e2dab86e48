"""What stands between backward and the step, told from two gradients alone: each kind, and where one ends and the next begins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn, optim

from topoopt.curvature.passage import LARGEST_COUNT, SAME, Passage, between, by_lengths
from topoopt.curvature.space import Layout, layout_of
from topoopt.errors import MeasurementError


def gradients() -> tuple[Layout, list[Tensor]]:
    """Of two weights, (4, 3) and (5,), in float64; their lengths are 3 and 4."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(*shape, dtype=torch.float64)) for shape in ((4, 3), (5,))]
    made = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in weights]
    made = [length * g / g.norm() for length, g in zip((3.0, 4.0), made)]
    return layout_of(optim.SGD(weights, lr=0.1)), made


def told(factor: float) -> list[Passage]:
    """Of a gradient times a factor: by its lengths, and by comparing."""
    layout, made = gradients()
    found = [factor * g for g in made]
    lengths = [torch.stack([g.norm() for g in side]) for side in (made, found)]
    seen = by_lengths(lengths[0], lengths[1], layout, found)
    assert seen is not None
    return [seen, between(made, found, layout)]


@pytest.mark.parametrize("factor", [1.0, 1 + 0.5 * SAME, 1 - 0.5 * SAME])
def test_rounding_is_no_passage(factor: float) -> None:
    for passage in told(factor):
        assert (passage.uniform, passage.clipped, passage.notes, passage.share, passage.rest) == (1, False, (), 1, 0)


@pytest.mark.parametrize(
    "factor", [0.25, 2.0**-16, 8.0, 1 / 3, 1 / LARGEST_COUNT, 1 / (LARGEST_COUNT - 1), 1 + 3 * SAME, 1.7]
)
def test_unscaling_and_averages_are_factors(factor: float) -> None:
    for passage in told(factor):
        assert passage.uniform == pytest.approx(factor, rel=1e-9)
        assert passage.share == pytest.approx(factor, rel=1e-9)
        assert not passage.clipped
        assert passage.direction is None
        assert "multiplied" in passage.notes[0]


@pytest.mark.parametrize("factor", [1 - 3 * SAME, 0.37, 1 / (LARGEST_COUNT + 1), 1 / 3 + 1e-5])
def test_any_other_factor_below_one_is_clipping_by_the_global_norm(factor: float) -> None:
    layout, made = gradients()
    for passage in told(factor):
        assert passage.uniform == pytest.approx(factor, rel=1e-9)
        assert passage.length == pytest.approx(5 * factor, rel=1e-9)
        assert passage.share == pytest.approx(factor, rel=1e-9)
        assert "clipped" in passage.notes[0]
        along = layout.flatten(made)
        assert float(passage.projected(along).norm()) < 1e-9
        across = torch.cat([torch.zeros(12, dtype=torch.float64), made[1]])
        left = passage.projected(across)
        assert float(left.norm()) == pytest.approx(4 * 3 / 5)  # what of it is at right angles to (3, 4)
        assert float(left @ along) == pytest.approx(0, abs=1e-9)


def test_clipping_brings_a_longer_gradient_to_its_length_and_leaves_a_shorter_one() -> None:
    layout, made = gradients()
    passage = between(made, [0.37 * g for g in made], layout)
    for times, length in ((1.0, 1.85), (3.0, 1.85), (0.37, 1.85), (0.2, 1.0), (0.0, 0.0)):
        applied = passage.apply([times * g for g in made])
        assert math.sqrt(sum(float(g.square().sum()) for g in applied if g is not None)) == pytest.approx(length)
    assert [g is None for g in passage.apply([None, made[1]])] == [True, False]


@pytest.mark.parametrize("lengths", [([0, 0], [3, 4]), ([3, 4], [0, 0]), ([0, 0], [0, 0]), ([math.inf, 4], [3, 4])])
def test_lengths_of_nothing_or_of_no_number_tell_nothing(lengths: tuple[list[float], list[float]]) -> None:
    layout, made = gradients()
    assert by_lengths(torch.tensor(lengths[0]), torch.tensor(lengths[1]), layout, made) is None


@pytest.mark.parametrize(("off", "told"), [(0.8e-3, True), (1.25e-3, False)])
def test_lengths_tell_where_all_tensors_are_scaled_alike(off: float, told: bool) -> None:
    """The factor of both, of lengths 3 and 4, lies 0.64 of the way from the first one's to the second's."""
    layout, made = gradients()
    before = torch.tensor([3.0, 4.0], dtype=torch.float64)
    after = before * torch.tensor([0.5 * (1 + off / 0.64), 0.5], dtype=torch.float64)
    assert (by_lengths(before, after, layout, made) is not None) is told


def test_a_tensor_without_a_gradient_does_not_count() -> None:
    layout, made = gradients()
    before, after = torch.tensor([0.0, 4.0]), torch.tensor([0.0, 1.0])
    passage = by_lengths(before, after, layout, made)
    assert passage is not None
    assert passage.uniform == 0.25


def test_a_gradient_that_is_gone_has_no_share() -> None:
    layout, made = gradients()
    zeros = [torch.zeros_like(g) for g in made]
    assert between(made, zeros, layout).share == 0
    assert between(zeros, made, layout).share == 1


def test_kinds_by_tensor_by_entry_and_by_row() -> None:
    layout, made = gradients()
    scaled = between(made, [0.5 * made[0], 2 * made[1]], layout)
    assert isinstance(scaled.factor, Tensor)
    torch.testing.assert_close(scaled.factor, torch.tensor([0.5] * 12 + [2.0] * 5, dtype=torch.float64))
    clipped = between(made, [g.clamp(-0.9, 0.9) for g in made], layout)
    flat = torch.cat([g.reshape(-1) for g in made])
    assert isinstance(clipped.factor, Tensor)
    assert torch.equal(clipped.factor, (flat.abs() <= 0.9).double())
    assert clipped.notes == (f"{int((flat.abs() > 0.9).sum())} gradients are clipped by value before the step",)
    mask = torch.arange(12).reshape(4, 3) % 2 == 0
    masked = between(made, [made[0] * mask, made[1]], layout)
    assert isinstance(masked.factor, Tensor)
    assert torch.equal(masked.factor, torch.cat([mask.reshape(-1).double(), torch.ones(5, dtype=torch.float64)]))
    assert masked.notes == ("6 gradients are set to 0 before the step",)
    centred = between(made, [made[0] - made[0].mean(1, keepdim=True), made[1]], layout)
    assert centred.centred is layout
    rows = centred.projected(flat)[:12].view(4, 3)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4, dtype=torch.float64))
    with pytest.raises(MeasurementError, match="entry by entry"):
        clipped.apply(made)


def test_noise_is_named_with_its_size_and_another_loss_is_refused() -> None:
    layout, made = gradients()
    noise = [torch.randn(g.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for g in made]
    length = math.sqrt(sum(float(n.square().sum()) for n in noise))
    noisy = between(made, [g + 0.5 * n / length for g, n in zip(made, noise)], layout)
    assert noisy.rest == pytest.approx(0.1)
    assert "10.0%" in noisy.notes[0]
    with pytest.raises(MeasurementError, match="another gradient"):
        between(made, [-g + 0.5 * n for g, n in zip(made, noise)], layout)
