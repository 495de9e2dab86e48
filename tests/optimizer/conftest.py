"""Wrapping and training, for the optimizer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from training_problems import Problem

from topoopt import TopoOptimizer


@pytest.fixture
def problem() -> Problem:
    return Problem()


@pytest.fixture
def train() -> Callable[..., None]:
    """Train a problem with whatever is stepped; the global generator is where a bare run leaves it."""

    def train(problem: Problem, stepped, steps: int, *, after: Callable[[int], None] | None = None) -> None:
        for step in range(steps):
            problem.model.zero_grad()
            problem.loss().backward()
            stepped.step()
            if after is not None:
                after(step)

    return train


@pytest.fixture
def wrap() -> Iterator[Callable[..., TopoOptimizer]]:
    """Wrap an optimizer for a problem, with its loss; every wrapper is detached at the end of the test."""
    made: list[TopoOptimizer] = []

    def wrap(optimizer, problem: Problem, **options) -> TopoOptimizer:
        options = {"loss": problem.loss, "every": 5, "budget": None, "homology": 0} | options
        made.append(TopoOptimizer(optimizer, problem.model, **options))
        return made[-1]

    yield wrap
    for one in made:
        if isinstance(one, TopoOptimizer):  # not detached yet
            one.detach()
