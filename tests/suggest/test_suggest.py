"""`topoopt.suggest`: what it finds, what it does not know, and what it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from suggest_tasks import Batch, digits, final_loss, loss_fn, mlp
from torch import Tensor, nn

import topoopt
from topoopt import Suggestion, suggest
from topoopt.suggestion.approach import momentum_of, target

GRID = {"adamw": (3e-3, 1e-2, 3e-2, 1e-1), "momentum": (3e-2, 1e-1, 3e-1, 1.0)}
MAKE = {"adamw": torch.optim.AdamW, "momentum": partial(torch.optim.SGD, momentum=0.9)}


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return digits(300)


@pytest.fixture(scope="module")
def found(batches: list[Batch]) -> Suggestion:
    model = mlp()
    return suggest(model, torch.optim.AdamW(model.parameters()), batches, loss_fn)


@pytest.mark.parametrize("rule", GRID)
def test_the_rate_ends_near_the_best_of_a_grid(rule: str, batches: list[Batch]) -> None:
    model = mlp()
    answer = suggest(model, MAKE[rule](model.parameters(), lr=1e-3), batches, loss_fn)
    best = min(final_loss(MAKE[rule], batches, lr) for lr in GRID[rule])
    assert answer.known
    assert final_loss(MAKE[rule], batches, answer.lr[0]) <= 1.5 * best
    assert answer.bracket[0] < answer.lr[0] < answer.bracket[1]
    assert answer.steps <= 160


def test_the_rate_that_is_set_only_gives_the_groups_their_ratios(batches: list[Batch], found: Suggestion) -> None:
    model = mlp()
    body, head = list(model[:-1].parameters()), list(model[-1].parameters())
    alone = suggest(model, torch.optim.AdamW(model.parameters(), lr=7.0), batches, loss_fn)
    assert alone.lr == pytest.approx(found.lr, rel=1e-6)
    assert alone.factor[0] == pytest.approx(found.lr[0] / 7.0)
    groups = [{"params": body, "lr": 2e-4}, {"params": head, "lr": 1e-3}]
    paired = suggest(model, torch.optim.AdamW(groups), batches, loss_fn)
    assert paired.known
    assert paired.lr[1] / paired.lr[0] == pytest.approx(5.0)
    assert paired.factor[0] == paired.factor[1]


def test_the_peak_of_a_schedule_counts_not_its_first_rate(batches: list[Batch], found: Suggestion) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    assert optimizer.param_groups[0]["lr"] == 0.0
    warmed = suggest(model, optimizer, batches, loss_fn)
    assert warmed.lr == pytest.approx(found.lr, rel=1e-6)
    assert warmed.factor[0] == pytest.approx(found.lr[0] / 1e-3)


def test_a_plateau_is_not_known_and_the_rates_stay_the_users(batches: list[Batch]) -> None:
    model = mlp(48, 4, nn.GELU)
    answer = suggest(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), batches, loss_fn)
    assert not answer.known
    assert answer.lr == (0.02,)
    assert answer.factor == (1.0,)
    assert "plateau" in answer.reason
    assert "not known" in str(answer)


@pytest.mark.parametrize(("first", "words"), [(0, "not finite before any step"), (5, "every one was lost")])
def test_batches_that_are_not_numbers_are_said(first: int, words: str, batches: list[Batch]) -> None:
    model = mlp()
    bad = [(x if i < first else x * math.nan, y) for i, (x, y) in enumerate(batches[:48])]
    if first:  # the last third of a short run is what it is judged by
        bad[20:] = batches[20:48]
    answer = suggest(model, torch.optim.AdamW(model.parameters()), bad, loss_fn)
    assert not answer.known
    assert words in answer.reason


def test_at_most_so_many_batches_are_taken_and_few_are_gone_round(batches: list[Batch]) -> None:
    taken = 0

    def counted() -> Iterator[Batch]:
        nonlocal taken
        for batch in batches:
            taken += 1
            yield batch

    model = mlp()
    full = suggest(model, torch.optim.AdamW(model.parameters()), counted(), loss_fn)
    assert taken == 48
    few = suggest(model, torch.optim.AdamW(model.parameters()), batches[:6], loss_fn)
    assert few.known
    assert "6 batches, gone round for 48" in few.reason
    assert "gone round" not in full.reason


@dataclass
class Output:
    loss: Tensor


class Labelled(nn.Module):
    """Takes its batch by name and computes its own loss; works on the pixels in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, pixels: Tensor, labels: Tensor) -> Any:
        return Output(nn.functional.cross_entropy(self.inner(pixels.mul_(2.0)), labels))


def test_a_model_that_computes_its_loss_needs_no_loss_fn(batches: list[Batch]) -> None:
    named = [{"pixels": x / 2, "labels": y} for x, y in batches[:48]]
    before = [one["pixels"].clone() for one in named]
    model = Labelled()
    by_name = suggest(model, torch.optim.AdamW(model.parameters()), named)
    assert all(torch.equal(one["pixels"], old) for one, old in zip(named, before))
    by_place = suggest(model, torch.optim.AdamW(model.parameters()), [tuple(one.values()) for one in named])
    plain = mlp()
    given = suggest(plain, torch.optim.AdamW(plain.parameters()), batches, loss_fn)
    assert by_name.lr == pytest.approx(given.lr, rel=1e-4)
    assert by_place.lr == by_name.lr


def test_losses_may_be_negative(batches: list[Batch], found: Suggestion) -> None:
    model = mlp()
    answer = suggest(model, torch.optim.AdamW(model.parameters()), batches, lambda m, b: loss_fn(m, b) - 5.0)
    assert answer.known
    assert 1 / 3 < answer.lr[0] / found.lr[0] < 3


def test_the_clipped_step_is_what_is_rehearsed(batches: list[Batch]) -> None:
    """Gradients clipped to a thousandth of their length want rates about a thousand times as large."""
    model = mlp()
    make = MAKE["momentum"]
    free = suggest(model, make(model.parameters(), lr=0.1), batches, loss_fn)
    norm = 1e-3
    clipped = suggest(model, make(model.parameters(), lr=0.1), batches, loss_fn, max_norm=norm)
    assert clipped.lr[0] > 20 * free.lr[0]


def test_readings_are_of_the_steps_that_were_taken(found: Suggestion) -> None:
    way = [one for one in found.readings if one.trial == 0]
    assert [one.step for one in way] == list(range(2, 48, 3))
    assert way[0].lr == pytest.approx(1e-5)
    assert all(1 / 2.5 - 1e-9 <= b.lr / a.lr <= 2.5 + 1e-9 for a, b in itertools.pairwise(way))
    last = way[-1]
    assert 0.1 < last.r / last.edge < 2.0
    assert {one.trial for one in found.readings} == {0, 1, 2, 3}
    assert len(found.trials) == 3
    assert min(trial.loss for trial in found.trials) < 0.5


def test_the_reason_says_what_it_rests_on(found: Suggestion) -> None:
    best = min(found.trials, key=lambda trial: trial.loss)
    assert f"the one from {best.lr:.3g} ended lowest, at {best.loss:.3g}" in found.reason
    assert "r/e in it was" in found.reason
    assert str(found).startswith(f"learning rate: {found.lr[0]:.3g}")


def test_the_plot_has_loss_and_r_over_e_against_the_rate(found: Suggestion) -> None:
    pytest.importorskip("matplotlib")
    upper, lower = found.plot().axes
    assert upper.get_ylabel() == "loss"
    assert lower.get_ylabel() == "r / e"
    trials = next(line for line in upper.lines if line.get_marker() == "o")
    assert list(trials.get_ydata()) == [trial.loss for trial in found.trials]
    way = [one for one in found.readings if one.trial == 0 and one.r > 0]
    assert list(lower.lines[0].get_ydata()) == pytest.approx([one.r / one.edge for one in way])


def test_the_target_falls_with_the_momentum_from_the_edge_itself() -> None:
    assert target(3.8, 0.9) == pytest.approx(1.9)
    assert target(2.0, 0.0) == 2.0
    shares = [target(1.0, beta) for beta in (0.0, 0.5, 0.9, 0.95, 0.99)]
    assert shares == sorted(shares, reverse=True)
    assert momentum_of([{"betas": (0.8, 0.9)}, {"momentum": 0.9}]) == 0.9
    assert momentum_of([{"lr": 0.1}]) == 0.0


def test_the_names_are_exported() -> None:
    assert topoopt.suggest is suggest
    assert callable(topoopt.suggest)
    assert topoopt.Suggestion is Suggestion
