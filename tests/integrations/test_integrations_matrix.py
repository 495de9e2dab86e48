"""Every torch optimizer, through every wrapper, stepped through either object: report mode leaves no trace in weights.

Steering is held against a bare run to which the same factors were applied by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from topoopt import TopoOptimizer

STEPS, EVERY = 14, 4


class Lion(Optimizer):
    """An optimizer from outside torch, with the least that torch asks of one."""

    def __init__(self, params, lr=1e-3, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.lerp(average, p.grad, 1 - group["beta"]).sign())
                average.lerp_(p.grad, 0.01)
        return loss


def _transformers_adafactor(params):
    from transformers import Adafactor

    return Adafactor(params, lr=1e-3, scale_parameter=False, relative_step=False)


CLASSES = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
}
MAKERS: dict[str, Callable[[list], Optimizer]] = {
    **{name: lambda p, cls=cls: cls(p) for name, cls in CLASSES.items() if name != "SGD"},
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD-groups": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.05),
    "Adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), capturable=False, foreach=False),
    "Adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "AdamW-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "Lion": lambda p: Lion(p),
    "transformers-Adafactor": _transformers_adafactor,
}

WITHOUT_SPECTRAL = ("LBFGS", "Rprop", "SparseAdam", "Lion")
"""Signs have no Lipschitz constant; a line search and sparse gradients have no step that could be taken on the side."""


class Bag(nn.Module):
    """A network whose first layer has sparse gradients."""

    def __init__(self, sparse: bool, bias: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(12, 6, sparse=True) if sparse else nn.Linear(12, 6, bias=bias)
        self.second = nn.Linear(6, 5, bias=bias)
        self.third = nn.Linear(5, 3, bias=bias)

    def forward(self, x):
        x = self.first(x)
        x = x.mean(1) if isinstance(self.first, nn.Embedding) else x
        return self.third(torch.tanh(self.second(torch.tanh(x))))


def setting(name: str):
    """Return (model, optimizer, batches): equal ones at each call."""
    torch.manual_seed(0)
    sparse = name == "SparseAdam"
    model = Bag(sparse, bias=name != "Muon")  # Muon takes matrices alone
    params = list(model.first.parameters() if sparse else model.parameters())
    inputs = torch.randint(0, 12, (STEPS, 8, 4)) if sparse else torch.randn(STEPS, 8, 12)
    return model, MAKERS[name](params), list(zip(inputs, torch.randint(0, 3, (STEPS, 8))))


class Once:
    """A scheduler that does nothing, for the plain column."""

    def step(self, *args):
        """Do nothing."""


SCHEDULERS: dict[str, Callable[[Optimizer], object]] = {
    "none": lambda o: Once(),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=1.0),
}


def train(model, stepped, batches, scheduler, wrapper="plain", each=lambda optimizer: None):
    """Train `model`, stepping the object `stepped`; `each` is called after every step."""
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if wrapper == "scaler" else None
    for x, y in batches:
        if scaler is not None:
            stepped.zero_grad()
            loss = criterion(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(stepped)
            scaler.update()
        elif wrapper == "closure":

            def closure(x=x, y=y):
                stepped.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                return loss

            loss = stepped.step(closure)
        else:
            stepped.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            stepped.step()
        each(stepped)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.detach())
        else:
            scheduler.step()


def wrap(optimizer, model, batches, **options):
    """Wrap as a user would, with a loss for the spectral end."""
    criterion = nn.CrossEntropyLoss()
    x, y = batches[0]
    settings = {"every": EVERY, "budget": None, "homology": 0, "products": 3, **options}
    return TopoOptimizer(optimizer, model, loss=lambda: criterion(model(x), y), **settings)


def scale_by(optimizer, factors):
    """Put one factor on each step's rates, as a user would by hand."""

    def put_on(optimizer, args, kwargs):
        factor = next(factors)
        for group in optimizer.param_groups:
            group["user_lr"], group["lr"] = group["lr"], group["lr"] * factor

    def take_off(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["lr"] = group.pop("user_lr")

    optimizer.register_step_pre_hook(put_on)
    optimizer.register_step_post_hook(take_off)


def assert_same_run(a, b):
    """Compare weights and optimizer state bit for bit."""
    (model_a, optimizer_a), (model_b, optimizer_b) = a, b
    for p, q in zip(model_a.parameters(), model_b.parameters()):
        assert torch.equal(p, q)
    for group_a, group_b in zip(optimizer_a.param_groups, optimizer_b.param_groups):
        assert group_a["lr"] == group_b["lr"]
    states = zip(optimizer_a.state.values(), optimizer_b.state.values(), strict=True)
    for state_a, state_b in states:
        assert state_a.keys() == state_b.keys()
        for key, value in state_a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, state_b[key]), key


def check_report(name, *, scheduler="none", wrapper="plain", through="facade"):
    """Train bare and wrapped, and compare."""
    wrapper = "closure" if name == "LBFGS" else wrapper
    bare_model, bare, batches = setting(name)
    train(bare_model, bare, batches, SCHEDULERS[scheduler](bare), wrapper)

    model, base, batches = setting(name)
    topo = wrap(base, model, batches)
    seen = []
    stepped = topo if through == "facade" else base
    train(model, stepped, batches, SCHEDULERS[scheduler](stepped), wrapper, lambda _: seen.append(topo.measured))
    assert_same_run((bare_model, bare), (model, base))
    assert_well_measured(topo, name, seen)
    topo.detach()


def assert_well_measured(topo, name, seen):
    """The steps that were due are measured, r is there where it is defined, and nothing failed on the way."""
    assert [step for step, measured in enumerate(seen) if measured] == list(range(0, STEPS, EVERY))
    assert topo.last is not None
    assert topo.last.groups, topo.last.skipped
    faults = {key for key in topo.last.counts if key.startswith("fault/")}
    assert faults <= ({"fault/spectral"} if name in WITHOUT_SPECTRAL else set()), topo.last.skipped
    assert ("spectral" in topo.last.skipped) == (name in WITHOUT_SPECTRAL), topo.last.skipped


def test_the_matrix_holds_every_class():
    assert {"SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Rprop", "Adafactor"} <= CLASSES.keys()


@pytest.mark.parametrize("through", ["facade", "base"])
@pytest.mark.parametrize("name", MAKERS)
def test_report_leaves_no_trace(name, through):
    check_report(name, through=through)


@pytest.mark.parametrize("through", ["facade", "base"])
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("LBFGS", "SparseAdam")])
def test_report_leaves_no_trace_under_a_grad_scaler(name, through):
    check_report(name, wrapper="scaler", through=through)


@pytest.mark.parametrize("through", ["facade", "base"])
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "none"])
@pytest.mark.parametrize("name", MAKERS)
def test_report_leaves_no_trace_under_a_scheduler(name, scheduler, through):
    check_report(name, scheduler=scheduler, through=through)


@pytest.mark.parametrize("through", ["facade", "base"])
@pytest.mark.parametrize("scheduler", ["none", "cosine", "plateau"])
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("LBFGS", "Rprop")])
def test_steering_is_the_bare_run_with_its_factors(name, scheduler, through):
    model, base, batches = setting(name)
    topo = wrap(base, model, batches, mode="hold", estimator="spectral")
    stepped = topo if through == "facade" else base
    factors = []
    train(model, stepped, batches, SCHEDULERS[scheduler](stepped), each=lambda _: factors.append(topo.lr_scale))
    assert any(factor != 1.0 for factor in factors), topo.last

    bare_model, bare, batches = setting(name)
    scale_by(bare, iter(factors))
    train(bare_model, bare, batches, SCHEDULERS[scheduler](bare))
    assert_same_run((bare_model, bare), (model, base))


def test_an_overflow_is_skipped_by_the_scaler_and_measured_as_no_step():
    """An infinite gradient: GradScaler leaves the step out, for the facade as for the bare optimizer."""
    finals = []
    for wrapped in (False, True):
        model, optimizer, batches = setting("SGD")
        stepped = wrap(optimizer, model, batches) if wrapped else optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for i, (x, y) in enumerate(batches):
            stepped.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss * (float("inf") if i == 5 else 1.0)).backward()
            scaler.step(stepped)
            scaler.update()
        finals.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*finals))
