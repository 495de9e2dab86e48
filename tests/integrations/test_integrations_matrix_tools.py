"""Every optimizer through accelerate and through Trainer, wrapped before or after: report leaves no trace, steering is its
factors."""

from __future__ import annotations

import pytest
from test_integrations_matrix import (
    EVERY,
    MAKERS,
    SCHEDULERS,
    STEPS,
    assert_same_run,
    assert_well_measured,
    scale_by,
    setting,
    train,
)
from torch import nn
from torch.optim import lr_scheduler

from topoopt import TopoOptimizer

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from topoopt.integrations.accelerate import attach  # noqa: E402
from topoopt.integrations.transformers import TopoCallback  # noqa: E402

OPTIONS = {"every": EVERY, "budget": None, "homology": 0, "products": 3}
STEERED = [name for name in MAKERS if name not in ("LBFGS", "Rprop")]  # their steps do not follow a rate
WITHOUT_TRAINER = {"LBFGS": "not callable", "SparseAdam": "Sparse"}
"""Trainer steps without a closure, and takes the norm of gradients, which torch cannot where they are sparse."""


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps its settings in a process-wide singleton."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def by_accelerate(name, how, factors=None, **options):
    """Train by accelerate's prepared objects; returns (model, base optimizer), the wrapper, and what it did at each step."""
    accelerator = accelerate.Accelerator(cpu=True)
    model, base, batches = setting(name)
    criterion, (x, y) = nn.CrossEntropyLoss(), batches[0]

    def loss():
        return criterion(model(x), y)

    given, topo, seen = base, None, []
    if how == "facade":
        given = TopoOptimizer(base, model, loss=loss, **OPTIONS, **options)
    if factors is not None:
        scale_by(base, iter(factors))
    prepared, optimizer, scheduler = accelerator.prepare(model, given, SCHEDULERS["cosine"](given))
    if how == "facade":
        topo = attach(accelerator, optimizer, prepared)
    elif how == "base":
        topo = attach(accelerator, optimizer, prepared, loss=loss, **OPTIONS, **options)
    wrapper = "closure" if name == "LBFGS" else "plain"
    train(prepared, optimizer, batches, scheduler, wrapper, lambda _: seen.append(did(topo)))
    return (model, base), topo, seen


def did(topo):
    """(measured, factor) of the step just taken."""
    return (topo.measured, topo.lr_scale) if topo is not None else (False, 1.0)


class Scored(nn.Module):
    """A network as Trainer wants one: it gets its batch by name and returns its loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        logits = self.network(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Watch(transformers.TrainerCallback):
    """Notes what was done to each step, and keeps the wrapper that did it."""

    def __init__(self, find):
        self.find, self.topo, self.seen = find, None, []

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.topo = self.find()
        self.seen.append(did(self.topo))


def by_trainer(name, how, folder, factors=None, **options):
    """The same by Trainer: the callback wraps the base, a facade is given as the optimizer."""
    network, base, batches = setting(name)
    model = Scored(network)
    rows = [{"x": x, "labels": y} for xs, ys in batches for x, y in zip(xs, ys)]
    callback, given = None, base
    if how == "base":
        callback = TopoCallback(**OPTIONS, **options)
    elif how == "facade":
        x, y = batches[0]
        given = TopoOptimizer(base, model, loss=lambda: model(x, y)["loss"], **OPTIONS, **options)
    if factors is not None:
        scale_by(base, iter(factors))
    watch = Watch(lambda: callback.topo if callback is not None else given if how == "facade" else None)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        optimizers=(given, lr_scheduler.LambdaLR(given, lambda step: 1 / (1 + 0.1 * step))),
        callbacks=[watch, *([] if callback is None else [callback])],
    )
    trainer.train()
    return (model, base), watch.topo, watch.seen


@pytest.mark.parametrize("name", MAKERS)
def test_report_leaves_no_trace_through_accelerate(name):
    bare, _, _ = by_accelerate(name, "bare")
    for how in ("facade", "base"):
        run, topo, seen = by_accelerate(name, how)
        assert_same_run(bare, run)
        assert_well_measured(topo, name, [measured for measured, _ in seen])


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in WITHOUT_TRAINER])
def test_report_leaves_no_trace_through_trainer(name, tmp_path):
    bare, _, _ = by_trainer(name, "bare", tmp_path)
    for how in ("facade", "base"):
        run, topo, seen = by_trainer(name, how, tmp_path)
        assert_same_run(bare, run)
        assert_well_measured(topo, name, [measured for measured, _ in seen])


@pytest.mark.parametrize("name", WITHOUT_TRAINER)
def test_what_trainer_cannot_step_is_named(name, tmp_path):
    """So that the table above cannot grow old."""
    with pytest.raises((TypeError, AttributeError, NotImplementedError), match=WITHOUT_TRAINER[name]):
        by_trainer(name, "bare", tmp_path)


@pytest.mark.parametrize("how", ["facade", "base"])
@pytest.mark.parametrize("name", STEERED)
@pytest.mark.parametrize("tool", ["accelerate", "trainer"])
def test_steering_is_the_bare_run_with_its_factors(tool, name, how, tmp_path):
    if tool == "trainer" and name in WITHOUT_TRAINER:
        pytest.skip("Trainer cannot step it")

    def run(how, **options):
        return (
            by_accelerate(name, how, **options) if tool == "accelerate" else by_trainer(name, how, tmp_path, **options)
        )

    steered, topo, seen = run(how, mode="hold", estimator="spectral")
    factors = [factor for _, factor in seen]
    assert len(factors) == STEPS
    assert any(factor != 1.0 for factor in factors), topo.last
    bare, _, _ = run("bare", factors=factors)
    assert_same_run(bare, steered)
