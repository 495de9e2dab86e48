"""What is said of a dead run, and of one whose length nobody gave, is the same wherever a user looks: real runs on digits."""

from __future__ import annotations

import html as entities
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu
from verdict_runs import digits, mlp

from topoopt import Phase, TopoOptimizer
from topoopt.cli import main
from topoopt.integrations.rows import Rows
from topoopt.measurement import Measurement
from topoopt.report import JsonLines, html, read
from topoopt.report.record import judged
from topoopt.verdict import Verdict


class Functional(nn.Module):
    """Activations as functions, which no hook on a module sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(relu(self.b(relu(self.a(x)))))


def train(
    folder: Path, model: nn.Module, lr: float, *, steps: int = 100, given: bool = False, every: int = 20
) -> tuple[Verdict, list[Measurement], Rows]:
    """A run of momentum with its record; `given`: with `loss=`."""
    (x, y), rows, measured = digits(), Rows(), []
    generator = torch.Generator().manual_seed(0)
    batch = torch.arange(64)
    optimizer = TopoOptimizer(
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        model,
        loss=(lambda: cross_entropy(model(x[batch]), y[batch])) if given else None,
        every=every,
        budget=None,
        homology=-1,
    )
    optimizer.add_sink(JsonLines(folder / "record.jsonl"))
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if optimizer.measured and optimizer.last is not None:
            measured.append(optimizer.last)
    for reading in optimizer.readings:
        rows.row(reading)
    verdict = optimizer.verdict
    optimizer.detach()
    return verdict, measured, rows


@pytest.mark.parametrize("make", [mlp, Functional])
@pytest.mark.parametrize("given", [False, True])
def test_a_dead_network_is_constrained_nowhere(
    make: Callable[[], nn.Module], given: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict, measured, rows = train(tmp_path, make(), 3.0, given=given)
    assert verdict.state == "collapsed"
    assert "silent" in verdict.happened
    assert [m.phase for m in measured[1:]] == [Phase.UNKNOWN] * (len(measured) - 1)
    assert all(value != value for m in measured[2:] for value in m.assessment.eta_star)
    assert rows.phase is Phase.UNKNOWN
    record = read(tmp_path)
    assert {str(m.phase) for m in list(record.measurements)[1:]} == {"unknown"}
    assert main(["show", str(tmp_path)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if " constrained " in line]
    assert all(line.split()[0] == "0" for line in shown)  # before its first step the network was alive
    assert main(["check", str(tmp_path)]) == 3


def test_the_same_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict, _, _ = train(tmp_path, mlp(), 3.0)
    capsys.readouterr()
    assert main(["show", "-q", str(tmp_path)]) == 0
    assert tuple(capsys.readouterr().out.splitlines()) == verdict.lines
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"]["lines"] == list(verdict.lines)
    record = read(tmp_path)
    assert record.verdict == verdict
    page = entities.unescape(html.page(record))
    assert all(line in page for line in verdict.lines)
    assert judged(record.last) == verdict  # what is said of a run that was killed before it could say it


def test_a_killed_run_of_unknown_length_has_enough_readings(tmp_path: Path) -> None:
    verdict, _, _ = train(tmp_path / "whole", mlp(), 0.1, steps=160, every=125)
    assert verdict.state != "not enough readings"
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / "record.jsonl", tmp_path / "cut" / "record.jsonl")
    kept = [
        line
        for line in (tmp_path / "cut" / "record.jsonl").read_text().splitlines()
        if '"verdict"' not in line and '"end"' not in line
    ]
    (tmp_path / "cut" / "record.jsonl").write_text("\n".join(kept) + "\n")
    record = read(tmp_path / "cut")
    assert judged(record.last) == verdict


def test_bert_under_trainer_at_ten_times_its_best_rate(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from topoopt.integrations.transformers import TopoCallback

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (256, 12), generator=generator)
    labels = (ids == 7).any(1).long() + (ids == 9).any(1).long()
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
        max_position_embeddings=12,
    )
    callback = TopoCallback(every=20, budget=None, homology=-1, record=tmp_path / "record.jsonl")
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=80,
        per_device_train_batch_size=32,
        learning_rate=3e-2,  # the best is near 3e-3
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=transformers.BertForSequenceClassification(config),
        args=arguments,
        train_dataset=[{"input_ids": i, "labels": y} for i, y in zip(ids, labels)],
        callbacks=[callback],
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "topo/phase" in row and row["topo/step"] >= 30]
    assert rows
    assert all(row["topo/phase"] != 0 for row in rows)
    assert trainer.state.log_history[-1]["topo/verdict"].startswith(callback.topo.verdict.happened)
    assert all(m.phase is not Phase.CONSTRAINED for m in read(tmp_path).measurements if m.step >= 30)
