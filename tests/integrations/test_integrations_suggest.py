"""TopoCallback(suggest=True): the rate is found before training, and nothing else is different from having typed it in."""

from __future__ import annotations

import logging
from collections import defaultdict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

transformers = pytest.importorskip("transformers")

from test_integrations_transformers import bert, rows  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from topoopt.errors import ConfigError  # noqa: E402
from topoopt.integrations.transformers import TopoCallback  # noqa: E402
from topoopt.report import read  # noqa: E402
from topoopt.suggestion import Suggestion, Trial  # noqa: E402

OPTIONS = {"every": 2, "budget": None, "homology": -1, "per_group": False}
ASKED = {"steps": 60}


class Noisy(Dataset):
    """A dataset that draws from a generator of its own, numpy's and torch's at every item."""

    def __init__(self) -> None:
        self.rows, self.own = rows(20), np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        row = dict(self.rows[place])
        drawn = self.own.random() + np.random.random() + float(torch.rand(()))  # noqa: NPY002
        if drawn > 1.5:
            row["input_ids"] = row["input_ids"].flip(0)
        return row


class Counting(Trainer):
    """Smooths labels by hand, and counts what it does, as trainers of one's own do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls, self.seen = 0, defaultdict(list)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.calls += 1
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.1)
        self.seen["loss"].append(float(loss.detach()))
        assert self.model.training == model.training
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss


def train(
    tmp_path: Any, callback: TrainerCallback | None, lr: float = 1e-4, **more: Any
) -> tuple[Trainer, dict[str, torch.Tensor]]:
    arguments = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | more.pop("arguments", {})
    np.random.seed(0)  # noqa: NPY002
    trainer = Counting(
        model=bert(),
        args=TrainingArguments(learning_rate=lr, **arguments),
        train_dataset=more.pop("data", None) or Noisy(),
        callbacks=[callback] if callback is not None else [],
        **more,
    )
    trainer.train()
    return trainer, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


SCHEDULES = [
    {},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no", "dataloader_num_workers": 1},
]


@pytest.mark.parametrize("arguments", SCHEDULES, ids=["linear", "smallest rate", "plateau"])
def test_the_training_is_the_one_with_that_rate_typed_in(arguments: dict[str, Any], tmp_path: Any, caplog) -> None:
    if arguments.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        arguments = arguments | {"eval_strategy": "steps", "eval_steps": 3}
    more = {"eval_dataset": rows(8)} if "eval_steps" in arguments else {}
    callback = TopoCallback(suggest=ASKED, record=tmp_path / "record.jsonl", **OPTIONS)
    with caplog.at_level(logging.WARNING, "topoopt"):
        found, weights = train(tmp_path, callback, arguments=arguments, **more)
    suggestion = callback.suggestion
    assert suggestion is not None
    assert suggestion.known, suggestion.reason
    lr = suggestion.lr[0]
    assert lr > 1e-4
    typed, by_hand = train(tmp_path, None, lr, arguments=arguments, **more)
    assert all(torch.equal(weights[name], by_hand[name]) for name in weights)
    rates = [[row["learning_rate"] for row in t.state.log_history if "learning_rate" in row] for t in (found, typed)]
    assert rates[0] == rates[1]
    assert (found.calls, len(found.seen["loss"])) == (typed.calls, len(typed.seen["loss"]))
    row = next(row for row in found.state.log_history if "loss" in row)
    assert row["topo/suggested_low"] < row["topo/suggested_lr"] == lr < row["topo/suggested_high"]
    assert suggestion.reason in row["topo/suggestion"]
    assert any(f"learning rate: {lr:.3g}" in one.message and suggestion.reason in one.message for one in caplog.records)
    run = read(tmp_path / "record.jsonl").last.run
    assert run is not None
    assert run.suggested is not None
    assert (run.suggested.lr, run.suggested.bracket) == ((lr, lr), suggestion.bracket)


def test_what_is_not_known_leaves_the_rate_and_says_so(tmp_path: Any, caplog) -> None:
    """A loss that no step moves: its gradients are of weights that it does not depend on."""

    class Flat(Counting):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return 3.0 + 0.0 * sum(p.sum() for p in model.parameters())

    callback = TopoCallback(suggest=True, record=tmp_path / "record.jsonl", **OPTIONS)
    trainer = Flat(
        model=bert(),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
            learning_rate=3e-4, lr_scheduler_type="constant", save_strategy="no",
        ),
        train_dataset=rows(16),
        callbacks=[callback],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "topoopt"):
        trainer.train()
    assert callback.suggestion is not None
    assert not callback.suggestion.known
    assert [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row] == [3e-4, 3e-4]
    assert any("not known" in one.message and "are yours, unchanged" in one.message for one in caplog.records)
    run = read(tmp_path / "record.jsonl").last.run
    assert run is not None
    assert run.suggested is not None
    assert (run.suggested.known, run.suggested.bracket, run.lr) == (False, None, (3e-4, 3e-4))


def test_a_loss_that_cannot_be_rehearsed_ends_nothing(tmp_path: Any) -> None:
    class Bound(Counting):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if model is not self.own["model"]:
                raise KeyError("another model")
            return super().compute_loss(model, inputs)

    callback = TopoCallback(suggest=True, **OPTIONS)
    trainer = Bound(
        model=bert(),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
        ),
        train_dataset=rows(16),
        callbacks=[callback],
    )
    trainer.own = MappingProxyType({"model": trainer.model})
    trainer.train()
    assert trainer.calls == 1
    assert callback.suggestion is not None
    assert "KeyError: 'another model'" in callback.suggestion.reason


def test_a_resumed_training_is_not_searched_again(tmp_path: Any) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 3}
    callback = TopoCallback(suggest=ASKED, **OPTIONS)
    train(tmp_path, callback, arguments=arguments)
    assert callback.suggestion is not None
    again = TopoCallback(suggest=ASKED, **OPTIONS)
    trainer = Counting(
        model=bert(seed=1),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            warmup_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, learning_rate=1e-4,
        ),
        train_dataset=Noisy(),
        callbacks=[again],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert again.suggestion is None
    assert trainer.lr_scheduler.base_lrs == list(callback.suggestion.lr)


def test_suggest_takes_what_it_can_use() -> None:
    for wrong in ("yes", {"loss_fn": None}, 1):
        with pytest.raises(ConfigError, match="suggest="):
            TopoCallback(suggest=wrong)  # type: ignore[arg-type]
    assert TopoCallback(suggest={"steps": 80}).state()["args"]["suggest"] == {"steps": 80}


# ---------------------------------------------------------------- the rate in optimizers and schedulers

from topoopt.suggestion import put_in_force  # noqa: E402
from topoopt.suggestion.batches import anew, generators_kept  # noqa: E402

S = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Any] = {
    "lambda with warm-up": lambda o: S.LambdaLR(o, lambda step: min(1.0, step / 7)),
    "linear": lambda o: S.LinearLR(o, 0.3),
    "cosine": lambda o: S.CosineAnnealingLR(o, 10),
    "step": lambda o: S.StepLR(o, 2, 0.3),
    "sequence": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1, total_iters=3), S.CosineAnnealingLR(o, 9)], [3]),
    "chain": lambda o: S.ChainedScheduler([S.LinearLR(o, 0.1, total_iters=3), S.ExponentialLR(o, 0.9)]),
    "plateau": lambda o: S.ReduceLROnPlateau(o),
    "none": lambda o: None,
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_rates_are_those_of_a_scheduler_made_with_it(name: str) -> None:
    def course(lr: float, found: Suggestion | None) -> list[list[float]]:
        layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
        groups = [{"params": layers[0].parameters()}, {"params": layers[1].parameters(), "lr": lr / 3}]
        optimizer = torch.optim.AdamW(groups, lr=lr)
        scheduler = SCHEDULERS[name](optimizer)
        if found is not None:
            put_in_force(found, optimizer, [scheduler] if scheduler is not None else [])
        seen = []
        for _ in range(12):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if scheduler is not None:
                scheduler.step(*([1.0] if name == "plateau" else []))
        return seen

    new = 0.0123456789
    found = Suggestion((new, new / 3), (new / 1e-3,) * 2, (0.001, 0.1), True, "", trials=(Trial(new, 1.0),))
    assert course(1e-3, found) == course(new, None)
    assert course(1e-3, Suggestion((), (), (0.0, float("inf")), False, "no")) == course(1e-3, None)


def test_one_cycle_keeps_its_shape() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scheduler = S.OneCycleLR(optimizer, max_lr=0.5, total_steps=10)
    first = optimizer.param_groups[0]["lr"]
    put_in_force(Suggestion((1.0,), (2.0,), (0.5, 2.0), True, ""), optimizer, [scheduler])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * first)
    rates = []
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(1.0, rel=0.05)


def test_a_rate_that_is_a_tensor_is_filled() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    put_in_force(Suggestion((0.4,), (4.0,), (0.2, 0.8), True, ""), optimizer)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.4)


def test_batches_are_those_to_come_and_the_loader_is_as_it_was() -> None:
    class Jittered(TensorDataset):
        own = torch.Generator().manual_seed(3)

        def __getitem__(self, place):
            return super().__getitem__(place)[0] + torch.rand((), generator=self.jitter)

    data = Jittered(torch.arange(12.0))
    data.jitter = torch.Generator().manual_seed(3)
    generator = torch.Generator().manual_seed(2)
    loader = DataLoader(data, batch_size=4, sampler=RandomSampler(data, generator=generator), collate_fn=torch.stack)
    with generators_kept(loader, data):
        ahead = list(anew(loader))
    assert all(torch.equal(a, b) for a, b in zip(ahead, list(loader), strict=True))
    again = DataLoader(data, batch_size=4, sampler=RandomSampler(data, generator=generator), collate_fn=torch.stack)
    assert not all(torch.equal(a, b) for a, b in zip(ahead, list(again), strict=True))
    with pytest.raises(Exception, match="only once"):
        anew(iter([1, 2]))
