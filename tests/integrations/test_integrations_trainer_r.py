"""r of Trainer's own step, against the dense Hessian of the loss that its step was made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from transformers import Trainer, TrainingArguments  # noqa: E402

from topoopt.integrations.transformers import TopoCallback  # noqa: E402

LR, BATCH = 0.3, 8
cross_entropy = nn.functional.cross_entropy


class Net(nn.Module):
    """A small network over three tokens; a loss only where it is asked for one. It keeps the batches that it was trained on."""

    def __init__(self, own_loss):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.own_loss, self.seen = own_loss, []
        self.config = transformers.PreTrainedConfig()

    def forward(self, x, labels=None):
        self.seen.append((x, labels))
        logits = self.inner(x)
        if not self.own_loss:
            return {"logits": logits}
        return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def summed(outputs, labels):
    return cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum")


def by_items(outputs, labels, num_items_in_batch=None):
    return summed(outputs, labels) / num_items_in_batch


def of_ones_own(outputs, labels, num_items_in_batch=None):
    return summed(outputs, labels) / 10


class Override(Trainer):
    """A trainer with a loss of its own that counts what it sees, as TRL's do."""

    seen = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.seen += inputs["x"].numel()
        labels = inputs["labels"]
        loss = summed(model(inputs["x"]), labels) / labels.numel() * 5.0
        return (loss, {}) if return_outputs else loss


def mean(logits, labels, items):
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def smoothed(logits, labels, items):
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2)


CASES = {
    # name: (the loss of the oracle per micro-batch, divided by their number or not, Trainer's options, TrainingArguments')
    "model": (mean, True, {}, {}),
    "num_items_in_batch": (
        lambda o, y, items: cross_entropy(o.flatten(0, 1), y.flatten(), reduction="sum") / items,
        False,
        {"compute_loss_func": by_items},
        {},
    ),
    "function": (
        lambda o, y, items: cross_entropy(o.flatten(0, 1), y.flatten(), reduction="sum") / 10,
        False,
        {"compute_loss_func": of_ones_own},
        {},
    ),
    "smoothing": (smoothed, True, {}, {"label_smoothing_factor": 0.2}),
    "override": (lambda o, y, items: 5.0 * mean(o, y, items), True, {"kind": Override}, {}),
}


def run(folder, model, callback, *, kind=Trainer, compute_loss_func=None, **arguments):
    generator = torch.Generator().manual_seed(1)
    data = [
        {"x": torch.randn(3, 3, generator=generator), "labels": torch.randint(0, 3, (3,), generator=generator)}
        for _ in range(64)
    ]
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = kind(
        model=model,
        args=TrainingArguments(**{**settings, **arguments}),
        train_dataset=data,
        callbacks=[] if callback is None else [callback],
        compute_loss_func=compute_loss_func,
    )
    trainer.train()
    return trainer


def dense(model, batches, loss, divide):
    """lr times the largest absolute eigenvalue of the Hessian of a step's loss, at the initial weights, in float64."""
    inner = Net(False).inner.double()
    shapes = [p.shape for p in inner.parameters()]
    flat = torch.cat([p.detach().flatten() for p in inner.parameters()])
    items = sum(labels.numel() for _, labels in batches)

    def total(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for (name, _), part, shape in zip(inner.named_parameters(), parts, shapes)}
        losses = [loss(torch.func.functional_call(inner, weights, (x.double(),)), y, items) for x, y in batches]
        return torch.stack(losses).sum() / (len(batches) if divide else 1)

    hessian = torch.autograd.functional.hessian(total, flat)
    return LR * float(torch.linalg.eigvalsh(hessian).abs().max()), float(total(flat))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_r_is_that_of_the_trainers_own_step(tmp_path, name, accumulation):
    loss, divide, options, arguments = CASES[name]
    bare = run(tmp_path, Net(name == "model"), None, gradient_accumulation_steps=accumulation, **options, **arguments)
    model = Net(name == "model")
    callback = TopoCallback(every=1, budget=None, homology=-1, products=20)
    arguments = {**arguments, "gradient_accumulation_steps": accumulation}
    trainer = run(tmp_path, model, callback, **options, **arguments)
    # Trainer takes the labels out of the inputs where the loss is not the model's: they come from the data again.
    batches = batches_of_first_step(trainer, model, accumulation)
    r, value = dense(model, batches, loss, divide)
    reading = callback.topo.readings[0]
    assert not reading.reason
    assert reading.r == pytest.approx(r, rel=0.01)
    assert reading.loss == pytest.approx(value, rel=1e-4)
    assert all(torch.equal(p, q) for p, q in zip(bare.model.parameters(), trainer.model.parameters()))
    for row, plain in zip(trainer.state.log_history, bare.state.log_history, strict=True):
        assert {key: row[key] for key in plain if "second" not in key and "runtime" not in key} == {
            key: value for key, value in plain.items() if "second" not in key and "runtime" not in key
        }
    if name == "override":
        assert trainer.seen == bare.seen


def batches_of_first_step(trainer, model, accumulation):
    rows = {tuple(row["x"].flatten().tolist()): row["labels"] for row in trainer.train_dataset}
    return [(x, torch.stack([rows[tuple(one.flatten().tolist())] for one in x])) for x, _ in model.seen[:accumulation]]


def test_clipping_shortens_the_step_that_is_read(tmp_path):
    """At a clipped norm c, r is at most c / |g| of what it is without, and the record says by how much it was shortened."""
    readings = []
    for norm in (0.0, 0.01):
        callback = TopoCallback(every=1, budget=None, homology=-1, products=20)
        run(tmp_path, Net(True), callback, max_grad_norm=norm)
        readings.append(callback.topo.readings[0])
    whole, clipped = readings
    assert clipped.clipped == pytest.approx(0.01 / whole.grad_norm, rel=1e-2)
    assert clipped.r <= 1.01 * whole.r * clipped.clipped
