"""Every torch optimizer with every tool, scheduler and mode, pairwise: report mode leaves no trace in weights.

Steering is held against a bare run to which the same factors were applied by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from topoopt import TopoOptimizer

STEPS, EVERY = 10, 4


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


UNCERTAIN = ("Muon", "SparseAdam")
"""Their r may be given up, with its reason: Muon steps in 16 bits, and of sparse gradients products are not always defined."""


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
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + 0.1 * step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1, cycle_momentum=False),
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.7),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=1.0),
}
TOOLS = ("plain", "scaler", "closure", "accelerate", "trainer")
MODES = ("report", "hold")
OPTIONS = {"every": EVERY, "budget": None, "homology": 0, "products": 3}
NOT_WITH = {
    "LBFGS": ("plain", "scaler", "accelerate", "trainer"),  # steps with a closure alone
    "SparseAdam": ("scaler", "trainer"),  # neither unscales or takes norms of gradients that are sparse
    "transformers-Adafactor": ("closure",),  # calls it without gradients
}
UNSTEERED = ("LBFGS", "Rprop")
"""Their steps do not follow a rate."""


def cases():
    """A mode and a scheduler for each optimizer and tool, such that all pairs of all four occur."""
    found = []
    for i, name in enumerate(MAKERS):
        for j, tool in enumerate(TOOLS):
            if tool in NOT_WITH.get(name, ()):
                continue
            mode = "report" if name in UNSTEERED else MODES[(i // len(TOOLS) + j) % 2]
            scheduler = list(SCHEDULERS)[(i + j) % len(SCHEDULERS)]
            if tool == "trainer" and scheduler == "plateau":
                scheduler = "lambda"  # Trainer steps it by evaluations
            found.append((name, tool, scheduler, mode))
    return found


def test_all_pairs_occur():
    """Also so that no optimizer of torch's is left out."""
    assert {"SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Rprop", "Adafactor"} <= CLASSES.keys()
    found = cases()
    whole = [name for name in MAKERS if name not in NOT_WITH]
    assert {(n, t) for n, t, _, _ in found} >= set(product(whole, TOOLS))
    assert {(n, m) for n, _, _, m in found} >= set(product([n for n in whole if n not in UNSTEERED], MODES))
    assert {(t, s) for _, t, s, _ in found} >= set(product(TOOLS, SCHEDULERS)) - {("trainer", "plateau")}
    assert {(t, m) for _, t, _, m in found} == set(product(TOOLS, MODES))
    assert {(s, m) for _, _, s, m in found} == set(product(SCHEDULERS, MODES))
    assert len({(n, s) for n, _, s, _ in found}) >= len(whole) * (len(SCHEDULERS) - 1)


class Scored(nn.Module):
    """A network as Trainer wants one: it gets its batch by name and returns its loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        logits = self.network(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Run:
    """One training: by which tool, with which factors put on by hand, measured or bare."""

    def __init__(self, name, tool, scheduler, folder, *, factors=None, **options):
        self.model, self.optimizer, self.batches = setting(name)
        self.folder, self.options, self.seen = folder, options, []
        self.topo: Any = None
        if factors is not None:
            scale_by(self.optimizer, iter(factors))
        if tool == "trainer":
            self.by_trainer(scheduler)
        elif tool == "accelerate":
            self.by_accelerate(scheduler)
        else:
            if options:
                self.topo = TopoOptimizer(self.optimizer, self.model, **options)
            self.loop(self.model, self.optimizer, SCHEDULERS[scheduler](self.optimizer), tool)
        if self.topo is not None:
            self.last = self.topo.last
            self.topo.detach()

    def note(self):
        if self.topo is not None:
            self.seen.append((self.topo.measured, self.topo.lr_scale))

    def loop(self, model, optimizer, scheduler, tool):
        criterion = nn.CrossEntropyLoss()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=tool == "scaler")
        for x, y in self.batches:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                scaler.scale(loss).backward()
                return loss

            if tool == "closure":
                loss = optimizer.step(closure)
            else:
                loss = closure()
                scaler.step(optimizer)
                scaler.update()
            self.note()
            scheduler.step(*([loss.detach()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))

    def by_accelerate(self, scheduler):
        accelerate = pytest.importorskip("accelerate")
        from topoopt.integrations.accelerate import attach

        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # settings are process-wide
        accelerator = accelerate.Accelerator(cpu=True)
        made = SCHEDULERS[scheduler](self.optimizer)
        model, optimizer = accelerator.prepare(self.model, self.optimizer)
        if self.options:
            self.topo = attach(accelerator, optimizer, model, **self.options)
        self.loop(model, optimizer, made, "plain")

    def by_trainer(self, scheduler):
        transformers = pytest.importorskip("transformers")
        from topoopt.integrations.transformers import TopoCallback

        run = self

        class Watch(transformers.TrainerCallback):
            def on_optimizer_step(self, args, state, control, **kwargs):
                run.note()

            def on_train_begin(self, args, state, control, **kwargs):
                run.topo = None if callback is None else callback.topo

        callback = TopoCallback(**self.options) if self.options else None
        arguments = transformers.TrainingArguments(
            output_dir=str(self.folder),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=Scored(self.model),
            args=arguments,
            train_dataset=[{"x": x, "labels": y} for xs, ys in self.batches for x, y in zip(xs, ys)],
            optimizers=(self.optimizer, SCHEDULERS[scheduler](self.optimizer)),
            callbacks=[*([] if callback is None else [callback]), Watch()],
        )
        trainer.train()
        if callback is not None:
            self.last, self.topo = callback.last, None


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


@pytest.mark.parametrize(("name", "tool", "scheduler", "mode"), cases())
def test_the_weights_are_those_of_the_bare_run(name, tool, scheduler, mode, tmp_path):
    run = Run(name, tool, scheduler, tmp_path, mode=mode, **OPTIONS)
    factors = [factor for _, factor in run.seen]
    assert len(factors) == STEPS
    bare = Run(name, tool, scheduler, tmp_path, factors=None if mode == "report" else factors)
    assert_same_run((bare.model, bare.optimizer), (run.model, run.optimizer))
    assert_well_measured(run, name)
    if mode == "hold" and name not in (*WITHOUT_SPECTRAL, *UNCERTAIN):
        assert any(factor != 1.0 for factor in factors), run.last


def assert_well_measured(run, name):
    """The steps that were due are measured, r is there where it is defined, and nothing failed on the way."""
    assert [step for step, (measured, _) in enumerate(run.seen) if measured] == list(range(0, STEPS, EVERY))
    assert run.last.groups, run.last.skipped
    faults = {key for key in run.last.counts if key.startswith("fault/")}
    assert not faults, run.last.skipped
    if name not in UNCERTAIN:
        assert ("spectral" in run.last.skipped) == (name in WITHOUT_SPECTRAL), run.last.skipped


def test_an_overflow_is_skipped_by_the_scaler_and_measured_as_no_step():
    """An infinite gradient: GradScaler leaves the step out, for the facade as for the bare optimizer."""
    finals = []
    for wrapped in (False, True):
        model, optimizer, batches = setting("SGD")
        stepped = TopoOptimizer(optimizer, model, **OPTIONS) if wrapped else optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for i, (x, y) in enumerate(batches):
            stepped.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss * (float("inf") if i == 5 else 1.0)).backward()
            scaler.step(stepped)
            scaler.update()
        finals.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*finals))
