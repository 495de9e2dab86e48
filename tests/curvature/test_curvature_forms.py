"""The full derivative, the black box, blocks and the neuron field, against dense Jacobians of the optimizer's own step."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from held_oracle import dense_hessian, full_jacobian, radius
from torch import Tensor, nn, optim

from topoopt.curvature import SpectralTracker, field_proximity, proximity, recognise
from topoopt.errors import ConfigError, MeasurementError, NotDefinedError

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(30, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(30, 2, generator=GENERATOR, dtype=torch.float64)


def network(width: int = 4, bias: bool = True) -> nn.Sequential:
    generator = torch.Generator().manual_seed(9)
    model = nn.Sequential(nn.Linear(3, width, bias=bias), nn.Tanh(), nn.Linear(width, 2, bias=bias)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.7)
    return model


def mse(model: nn.Module) -> Tensor:
    return (model(X) - Y).square().mean()


def after(make: Any, steps: int = 12, **options: Any) -> tuple[nn.Sequential, optim.Optimizer]:
    model = network(**options)
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        mse(model).backward()
        optimizer.step()
    optimizer.zero_grad()
    mse(model).backward()
    return model, optimizer


COORDINATEWISE = {
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.003, momentum=0.5),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "adam decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.2),
    "adamw decay": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5),
}
ANY = {
    **COORDINATEWISE,
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}


@pytest.mark.parametrize("case", COORDINATEWISE)
def test_full_derivative_of_a_coordinatewise_rule(case: str) -> None:
    model, optimizer = after(COORDINATEWISE[case])
    truth = radius(full_jacobian(model, optimizer, mse))
    found = proximity(optimizer, lambda: mse(model), form="full", when="upcoming", products=26)
    assert found.form == "full"
    assert found.r == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("case", ANY)
def test_black_box_is_the_full_steps_jacobian(case: str) -> None:
    model, optimizer = after(ANY[case])
    truth = radius(full_jacobian(model, optimizer, mse))
    found = proximity(optimizer, lambda: mse(model), form="black box", when="upcoming", products=26)
    assert found.r == pytest.approx(truth, rel=0.02)


def newton_schulz(g: Tensor) -> Tensor:
    """Muon's orthogonalisation as its authors write it down, in the precision of g."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_muon_is_followed_without_the_rounding_of_its_16_bits(dtype: torch.dtype) -> None:
    """Its own step is a staircase: a finite difference of it reads the height of a stair over the step's length."""
    make: Any = lambda p: optim.Muon(p, lr=0.01, weight_decay=0.1)  # type: ignore[attr-defined]  # noqa: E731
    model, optimizer = after(make, bias=False)
    parameters = list(model.parameters())
    buffers = [optimizer.state[p]["momentum_buffer"] for p in parameters]
    shapes = [p.shape for p in parameters]

    def moved(flat: Tensor) -> Tensor:
        weights = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes)]
        loss = (torch.tanh(X @ weights[0].T) @ weights[1].T - Y).square().mean()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        moves = []
        for w, g, buffer in zip(weights, grads, buffers):
            average = 0.95 * buffer + 0.05 * g
            update = newton_schulz(0.05 * g + 0.95 * average)
            moves.append(-0.001 * w - 0.01 * math.sqrt(max(1, w.shape[0] / w.shape[1])) * update)
        return torch.cat([move.reshape(-1) for move in moves])

    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    truth = radius(-torch.autograd.functional.jacobian(moved, flat))  # type: ignore[arg-type]
    model.to(dtype)
    for p, buffer in zip(parameters, buffers):
        optimizer.state[p]["momentum_buffer"] = buffer.to(dtype)

    def loss() -> Tensor:
        return (model(X.to(dtype)) - Y.to(dtype)).square().mean()

    found = proximity(optimizer, loss, when="upcoming", products=20)
    assert (found.rule, found.form) == ("black box", "black box")
    assert found.r == pytest.approx(truth, rel=0.02)
    assert any("without its casts to 16 bits" in note for note in found.notes)


class Belief(optim.Optimizer):
    """AdaBelief, as a library of its own has it: coordinate by coordinate; or with its gradients clipped together first."""

    def __init__(self, params: Any, clip: float = math.inf) -> None:
        super().__init__(params, {"lr": 0.01, "clip": clip, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        length = torch.stack([p.grad.norm() for p in group["params"]]).norm()
        for p in group["params"]:
            g = p.grad * (group["clip"] / length).clamp(max=1)
            m, s = (self.state[p].setdefault(key, torch.zeros_like(p)) for key in ("m", "s"))
            m.lerp_(g, 0.1)
            s.lerp_((g - m).square(), 0.01)
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * m / (s.sqrt() + 1e-3))


@pytest.mark.parametrize(("clip", "form"), [(math.inf, "full"), (1e-3, "black box")])
def test_an_unknown_rule_is_told_by_trying(clip: float, form: str) -> None:
    model, optimizer = after(lambda p: Belief(p, clip))
    truth = radius(full_jacobian(model, optimizer, mse))
    found = proximity(optimizer, lambda: mse(model), when="upcoming", products=26)
    assert (found.rule, found.form) == ("black box", form)
    assert found.engine == ("double backward" if form == "full" else "finite differences")
    assert found.r == pytest.approx(truth, rel=0.02)


def test_a_rule_that_stops_to_be_coordinate_wise_goes_on_as_a_black_box() -> None:
    """The engine that is remembered from the measurements before cannot move weights."""
    model, optimizer = after(Belief)
    tracker = SpectralTracker(optimizer, products=26)
    forms = []
    for clip in (math.inf, 1e-3, math.inf):
        optimizer.param_groups[0]["clip"] = clip
        found = tracker.estimate(lambda: mse(model))
        forms.append(found.form)
        assert found.r == pytest.approx(radius(full_jacobian(model, optimizer, mse)), rel=0.02)
    assert forms == ["full", "black box", "full"]


def test_the_full_form_is_refused_for_a_rule_that_is_not_coordinate_wise() -> None:
    model, optimizer = after(lambda p: optim.Adafactor(p, lr=0.01))
    with pytest.raises(ConfigError, match="coordinate-wise"):
        proximity(optimizer, lambda: mse(model), form="full")


class Rounded(optim.Optimizer):
    """A step that is rounded in a way that no precision of ours helps against."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_((p.grad * 1e5).round() / 1e5, alpha=0.1)


def test_a_step_that_is_rounded_gives_no_reading() -> None:
    model = network().float()
    optimizer = Rounded(model.parameters())
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(30, 3, generator=generator), torch.randn(30, 2, generator=generator)
    smooth = proximity(optim.SGD(model.parameters(), lr=0.1), lambda: (model(x) - y).square().mean() * 1e-3)
    found = proximity(optimizer, lambda: (model(x) - y).square().mean() * 1e-3, products=20)
    assert math.isnan(found.r), (found.r, smooth.r)
    assert any("r is not known" in note for note in found.notes)


class Obscure(optim.Optimizer):
    """Moves by signs of an average, decays, and does not say so by its name."""

    def __init__(self, params: Any, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": 1e-3, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(0.99).sub_(average.sign(), alpha=group["lr"])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_signs_are_recognised_whatever_the_name(momentum: float) -> None:
    model, optimizer = after(lambda p: Obscure(p, momentum))
    with pytest.raises(NotDefinedError, match="moves by signs"):
        proximity(optimizer, lambda: mse(model))


class Lion(optim.Optimizer):
    """As libraries of their own have it, without the average."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad.sign(), alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "make", [optim.Rprop, Lion, type("Lion8bit", (Lion,), {}), type("PagedLion", (Lion,), {})], ids=lambda m: m.__name__
)
def test_a_rule_that_takes_signs_says_so(make: Any) -> None:
    model, optimizer = after(make)
    with pytest.raises(MeasurementError, match="no Lipschitz constant"):
        proximity(optimizer, lambda: mse(model))


def test_sparse_adam_against_its_formula() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = optim.SparseAdam(table.parameters(), lr=0.01)
    ids, target = torch.tensor([0, 1, 4]), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        (table(ids) - target).square().sum().backward()
        optimizer.step()
    v, t = optimizer.state[table.weight]["exp_avg_sq"], 3
    share = 0.01 * 0.1 / (1 - 0.9**t) * (1 - 0.999**t) ** 0.5
    truth = float((2 * share / (v[ids].sqrt() + 1e-8)).max())  # the Hessian is 2 on the rows in use
    dense = copy.deepcopy(table.weight)

    def loss() -> Tensor:
        return (nn.functional.embedding(ids, table.weight) - target).square().sum()

    assert proximity(optimizer, loss, products=12).r == pytest.approx(truth, rel=1e-3)
    assert torch.equal(dense, table.weight)


def test_per_group_rates_tensor_rate_and_frozen_weights() -> None:
    model = network()
    model[2].bias.requires_grad_(False)
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters(), "lr": torch.tensor(0.03)}]
    optimizer = optim.SGD(groups)
    sizes = [16 * [0.2], 8 * [0.03], 2 * [0.0]]
    rate = torch.tensor([v for part in sizes for v in part], dtype=torch.float64)
    for p in model.parameters():
        p.requires_grad_(True)
    hessian = dense_hessian(model, mse)
    model[2].bias.requires_grad_(False)
    truth = radius(rate[:, None] * hessian)
    found = proximity(optimizer, lambda: SimpleNamespace(loss=mse(model)), products=30)
    assert found.r == pytest.approx(truth, rel=1e-3)


def test_a_block_is_the_block_of_the_dense_jacobian() -> None:
    model, optimizer = after(lambda p: optim.SGD(p, lr=0.1))
    mask = torch.zeros(26, dtype=torch.bool)
    mask[[0, 1, 2, 12, 16, 20]] = True
    pieces = [m.view_as(p) for m, p in zip(mask.split([p.numel() for p in model.parameters()]), model.parameters())]
    values = torch.linalg.eigvalsh(0.1 * dense_hessian(model, mse)[mask][:, mask])
    found = proximity(optimizer, lambda: mse(model), block=dict(zip(model.parameters(), pieces)), products=26)
    assert found.r == pytest.approx(float(values.abs().max()), rel=1e-3)
    assert found.high == pytest.approx(float(values[-1]), rel=1e-3)


def neurons(width: int) -> Tensor:
    """(width, 6): row, bias and column of each hidden unit of `network`."""
    row = torch.arange(3 * width).view(width, 3)
    column = 4 * width + torch.arange(2 * width).view(2, width).T
    return torch.cat([row, 3 * width + torch.arange(width)[:, None], column], 1)


@pytest.mark.parametrize("width", [4, 24])
def test_field_is_the_largest_block_of_one_neuron(width: int) -> None:
    model, optimizer = after(lambda p: optim.SGD(p, lr=0.1), width=width)
    jacobian = 0.1 * dense_hessian(model, mse)
    places = neurons(width)
    truth = max(float(torch.linalg.matrix_norm(jacobian[i][:, i], 2)) for i in places)
    found = field_proximity(optimizer, lambda: mse(model), places, parameters=list(model.parameters()))
    assert found == pytest.approx(truth, rel=1e-3)


def test_attention_takes_the_engine_with_math_attention() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        q = nn.functional.linear(x, model.in_proj_weight).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(*q).transpose(1, 2).reshape(2, 5, 8)
        return model.out_proj(out).square().mean()

    optimizer = optim.SGD(model.parameters(), lr=0.1)
    exact = proximity(optimizer, loss, products=20)
    differences = proximity(optimizer, loss, products=20, engine="finite differences")
    assert exact.engine == "double backward, math attention"
    assert differences.r == pytest.approx(exact.r, rel=0.01)


def test_a_mixture_of_signs_is_measured_as_it_is() -> None:
    """One group descends, the other ascends: the Jacobian is not symmetric."""
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "maximize": True}]
    optimizer = optim.SGD(groups, lr=0.1)
    sign = torch.tensor([1.0] * 16 + [-1.0] * 10, dtype=torch.float64)
    truth = radius(0.1 * sign[:, None] * dense_hessian(model, mse))
    assert proximity(optimizer, lambda: mse(model), products=26).r == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("form", ["held", "full", "black box"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_diverged_run_reads_nan_with_a_reason(form: str, poison: float) -> None:
    model, optimizer = after(lambda p: optim.Adam(p, lr=0.01))
    with torch.no_grad():
        model[0].weight[0, 0] = poison
        model[2].weight[0, 0] = poison
    found = proximity(optimizer, lambda: mse(model), form=form)
    assert math.isnan(found.r)
    assert any("not finite" in note for note in found.notes)


def test_a_tracker_recovers_from_a_diverged_reading() -> None:
    model, optimizer = after(lambda p: optim.SGD(p, lr=0.1))
    tracker = SpectralTracker(optimizer, products=26)
    healthy = tracker.estimate(lambda: mse(model)).r
    assert math.isnan(tracker.estimate(lambda: mse(model) * float("nan")).r)
    assert tracker.estimate(lambda: mse(model)).r == pytest.approx(healthy, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"when": "now"}, "when="), ({"form": "dense"}, "form="), ({"engine": "guess"}, "engine=")],
)
def test_unknown_options_are_refused(options: dict[str, str], match: str) -> None:
    model, optimizer = after(lambda p: optim.SGD(p, lr=0.1))
    with pytest.raises(ConfigError, match=match):
        proximity(optimizer, lambda: mse(model), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "edge"),
    [
        (lambda p: optim.SGD(p, lr=0.1), 2.0),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), 3.8),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 2 * 1.9**2 / 2.8),
        (lambda p: optim.Adam(p, betas=(0.5, 0.9)), 3.0),
        (lambda p: optim.RMSprop(p), 2.0),
    ],
)
def test_edge_is_where_a_quadratic_stops_converging(make: Any, edge: float) -> None:
    optimizer = make([nn.Parameter(torch.ones(1))])
    assert recognise(optimizer)[1] == pytest.approx(edge)


@pytest.mark.parametrize(("beta", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_sgd_diverges_just_past_its_edge_and_not_before(beta: float, nesterov: bool) -> None:
    for share, settles in [(0.97, True), (1.03, False)]:
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.SGD([x], lr=0.1, momentum=beta, nesterov=nesterov)
        r = proximity(optimizer, lambda: x.square().sum() / 2, when="upcoming").r  # noqa: B023 -- called at once
        settled = optim.SGD([x], lr=0.1 * share * recognise(optimizer)[1] / r, momentum=beta, nesterov=nesterov)
        for _ in range(600):
            settled.zero_grad()
            (x.square().sum() / 2).backward()
            settled.step()
        assert (abs(x.item()) < 0.1) is settles


@pytest.mark.parametrize("form", ["full", "black box"])
def test_float32_weights_lose_little(form: str) -> None:
    """Steps of 1e-4 beside weights of 1: their differences are rounding unless the copy steps in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        model, optimizer = after(lambda p: optim.Adam(p, lr=1e-4))
        model = copy.deepcopy(model).to(dtype)
        twin = optim.Adam(model.parameters(), lr=1e-4)
        twin.load_state_dict(optimizer.state_dict())
        x, y = X.to(dtype), Y.to(dtype)
        loss = lambda: (model(x) - y).square().mean()  # noqa: B023, E731
        loss().backward()
        found.append(proximity(twin, loss, form=form, when="upcoming", products=26).r)
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("when", ["last", "upcoming"])
@pytest.mark.parametrize("engine", ["auto", "finite differences", "finite differences through .grad"])
def test_weights_that_no_step_would_touch_have_no_part(engine: str, when: str) -> None:
    """Without a gradient torch skips a weight, its decay included: 0, though lr c / eps would be the largest r of all."""
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)]).double()
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.eye(2, dtype=torch.float64)
    both, used = (optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1) for m in (model, model[0]))
    loss = lambda: (model[0](x) - 1).square().sum()  # noqa: E731
    values = [proximity(o, loss, engine=engine, when=when, products=12).r for o in (both, used)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("engine", ["double backward", "finite differences"])
def test_complex_weights_are_two_real_ones(engine: str) -> None:
    """The Hessian in real coordinates is diag(1, 16) for each entry."""
    w = nn.Parameter(torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128))
    optimizer = optim.SGD([w], lr=0.1)

    def loss() -> Tensor:
        return (0.5 * w.real**2 + 8 * w.imag**2).sum()

    found = proximity(optimizer, loss, engine=engine)
    assert found.r == pytest.approx(1.6, rel=1e-3)
    assert len(found.vector) == 4


class BroughtUp(optim.Optimizer):
    """AdaNorm's idea: a gradient shorter than usual is brought up to its usual length, the whole tensor together."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad * max(1.0, 1.0 / float(p.grad.norm())))


@pytest.mark.parametrize("size", [8, 9, 10, 11])
def test_a_rule_that_couples_two_weights_of_a_small_tensor_is_no_coordinate_wise_one(size: int) -> None:
    weights = [nn.Parameter(torch.ones(size).double()), nn.Parameter(torch.full((2,), 0.1).double())]
    curvature = [torch.linspace(1, 3, len(w)).double() for w in weights]

    def loss() -> Tensor:
        return torch.stack([0.5 * (h * w * w).sum() for h, w in zip(curvature, weights)]).sum()

    optimizer = BroughtUp(weights)
    loss().backward()
    g = weights[1].grad
    assert g is not None
    assert float(g.norm()) < 1 < float(weights[0].grad.norm())  # type: ignore[union-attr]
    small = 0.1 / g.norm() * (torch.diag(curvature[1]) - torch.outer(g, g * curvature[1]) / g.norm() ** 2)
    truth = max(0.3, float(torch.linalg.eigvals(small).abs().max()))
    found = proximity(optimizer, loss, products=40, when="upcoming")
    assert found.form == "black box"
    assert found.r == pytest.approx(truth, rel=0.01)
