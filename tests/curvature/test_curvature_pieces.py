"""Products and readings by pieces, against dense matrices in float64: whatever the pieces, the rule, the clipping, the block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from held_oracle import dense_hessian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.nn import functional as F

from topoopt.curvature import SpectralTracker, Tracked
from topoopt.curvature.lean import pieces
from topoopt.curvature.lean.few import cold_start, estimate
from topoopt.curvature.lean.operator import Operator
from topoopt.curvature.lean.pieces import Rounded, cut

RULES: dict[str, Callable[[list[nn.Parameter]], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.3, momentum=0.9),
    "ascent": lambda p: optim.SGD(p, lr=0.1, maximize=True),
    "adam decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.2),
    "amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop centered": lambda p: optim.RMSprop(p, lr=0.003, centered=True),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}
X = torch.randn(9, 2, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.arange(9) % 3


class Small(nn.Module):
    """Weights of 20, 320, 60 and 3 entries: more than one piece, a part of one, and a convolution in another order of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 20, (2, 4), bias=False)
        self.bias = nn.Parameter(torch.zeros(20))
        self.out = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(x).flatten(1) + self.bias))


def watched(rule: str, *, clip: bool = False, last: bool = False) -> tuple[Small, optim.Optimizer, Tracked]:
    """The third step of a run, taped, in float64."""
    torch.manual_seed(0)
    model = Small().double()
    if last:
        model.conv.weight.data = model.conv.weight.data.to(memory_format=torch.channels_last)
    optimizer = RULES[rule](list(model.parameters()))
    tracker = SpectralTracker(optimizer, engine="finite differences")
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    optimizer.zero_grad()
    with tracker.tape(model) as tape:
        F.cross_entropy(model(X), Y).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    return model, optimizer, tracker.taped(tape)


def dense(model: Small, operator: Operator, rule: str, *, clip: bool) -> Tensor:
    """A as a matrix: w^1/2 P H P w^1/2 and the shift, of the operator's own rates."""
    hessian = dense_hessian(model, lambda m: F.cross_entropy(m(X), Y))
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    if clip:
        hessian = operator.factor * hessian
        free = torch.eye(len(g), dtype=g.dtype) - torch.outer(g, g) / g.dot(g)
        hessian = free @ hessian @ free
    rates = [operator.rates(k) for k in range(len(operator.pieces))]
    sizes = [piece.stop - piece.start for piece in operator.pieces]
    w, shift = (
        torch.cat([torch.as_tensor(r[side], dtype=g.dtype).expand(n) for r, n in zip(rates, sizes)]) for side in (0, 1)
    )
    sign = -1.0 if rule == "ascent" else 1.0
    return sign * w.sqrt()[:, None] * hessian * w.sqrt()[None, :] + torch.diag(shift)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["plain", "clipped", "channels last", "block"])
def test_a_product_is_that_of_the_dense_matrix(rule: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HERE", 128)
    model, _, tracked = watched(rule, clip=how == "clipped", last=how == "channels last")
    operator = tracked.operator
    assert operator is not None
    assert [p.stop - p.start for p in operator.pieces] == [20, 128, 128, 64, 60, 3]
    matrix = dense(model, operator, rule, clip=how == "clipped")
    inside = torch.ones(len(matrix), dtype=torch.bool)
    if how == "block":
        mask = torch.arange(320).reshape(model.conv.weight.shape) % 3 == 0
        operator.block = {1: mask}
        none = torch.zeros(len(matrix), dtype=torch.bool)
        inside = torch.cat([none[:20], mask.reshape(-1), none[340:]])
        matrix = matrix * inside[:, None] * inside[None, :]
    along = torch.randn(len(matrix), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = along.split([p.stop - p.start for p in operator.pieces])
    direction = Rounded.of(len(parts), parts.__getitem__)
    before = Rounded.of(len(parts), lambda k: parts[k].roll(1))
    found, inner = operator(direction, (before, torch.tensor(0.3, dtype=torch.float64)))
    said = direction.flat() * inside
    expected = matrix @ said - 0.3 * before.flat()
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert float(inner) == pytest.approx(float(torch.cat(found) @ said), rel=1e-9)
    assert float(direction.square) == pytest.approx(float(direction.flat().square().sum()), rel=1e-6)
    length = operator.without(found, direction, torch.tensor(0.7, dtype=torch.float64))
    assert float(length) == pytest.approx(float((expected - 0.7 * said).norm()), rel=2e-3)


@pytest.mark.parametrize("rule", RULES)
def test_twenty_products_find_the_dense_radius(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HERE", 128)
    model, _, tracked = watched(rule)
    operator = tracked.operator
    assert operator is not None
    found = estimate(operator, cold_start(operator, 0), 20)
    values, vectors = torch.linalg.eigh(dense(model, operator, rule, clip=False))
    top = values.abs().argmax()
    assert found.r == pytest.approx(float(values[top].abs()), rel=0.01)
    direction = found.direction.flat()
    assert float((vectors[:, top] @ direction).abs() / direction.norm()) > 0.99


@pytest.mark.parametrize("rule", ["adam decay", "sgd decay"])
def test_the_reading_is_the_same_however_it_is_cut(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (128, 256, 1 << 18):
        monkeypatch.setattr(pieces, "HERE", most)
        _, _, tracked = watched(rule)
        operator = tracked.operator
        assert operator is not None
        start = Rounded.of(len(operator.pieces), operator.pulled)
        found.append(estimate(operator, start, 4).r)
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-6)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=5), st.sampled_from([128, 256, 1 << 18]))
@settings(max_examples=40, deadline=None)
def test_pieces_cover_every_weight_once_and_rounding_stays_near(sizes: list[int], most: int) -> None:
    weights = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "HERE", most)
        found = cut(weights)
    joined = torch.cat([piece.of(weights[piece.parameter]) for piece in found])
    assert torch.equal(joined, torch.cat(weights))
    rounded = Rounded.of(len(found), lambda k: found[k].of(weights[found[k].parameter]))
    assert rounded.fits(found)
    assert (rounded.flat() - joined).norm() <= 0.02 * joined.norm()
    assert (rounded.coarse().flat() - joined).norm() <= 0.3 * joined.norm()
    half = rounded.times(torch.tensor(0.5))
    torch.testing.assert_close(half.flat(), 0.5 * rounded.flat())
    assert float(half.square) == pytest.approx(0.25 * float(rounded.square), rel=1e-5)


def test_what_the_last_product_raised_r_by_is_told() -> None:
    _, _, tracked = watched("adam decay")
    operator = tracked.operator
    assert operator is not None
    two, three = (estimate(operator, cold_start(operator, 0), count) for count in (2, 3))
    assert three.rise == pytest.approx(1 - two.r / three.r, rel=1e-6)
    assert 0 < three.rise < 0.5
    assert three.high >= two.high


def test_a_step_of_no_length_has_no_r_and_no_rise() -> None:
    _, optimizer, _ = watched("sgd")
    optimizer.param_groups[0]["lr"] = 0.0
    tracker, model = SpectralTracker(optimizer, engine="finite differences"), Small().double()
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with tracker.tape(model) as tape:
        F.cross_entropy(model(X), Y).backward()
    operator = tracker.taped(tape).operator
    assert operator is not None
    found = estimate(operator, cold_start(operator, 0), 2)
    assert (found.r, found.low, found.high, found.rise) == (0, 0, 0, 0)
