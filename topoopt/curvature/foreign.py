"""Python's and numpy's generators: seen to move, held where an evaluation starts, put back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def foreign_draws() -> tuple[Any, Any]:
    """Where Python's and numpy's generators stand: they cannot be given to a replay, only be seen to move."""
    _, keys, place, *rest = np.random.get_state()  # noqa: NPY002 -- the user's legacy generator is looked at
    return hash(random.getstate()), (place, int(keys[0]), int(keys[-1]), *rest)


class Foreign:
    """Python's and numpy's generators, at one place for every evaluation, and put back.

    Where other threads run they may be what draws; the generators are then left alone, unless evaluations differ for them.
    """

    def __init__(self) -> None:
        self._start = self._now()
        self.held = threading.active_count() == 1
        self.moved = False

    def hold(self) -> None:
        """They are what the loss draws from: from now on each evaluation does from their start, where they are put back."""
        self.held = True
        self._put(self._start)

    @staticmethod
    def _now() -> tuple[Any, Any]:
        return random.getstate(), np.random.get_state()  # noqa: NPY002 -- the user's legacy state is kept

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """One evaluation, from the start's place when they are held."""
        theirs = self._now()
        if self.held:
            self._put(self._start)
        try:
            yield
        finally:
            here = self._now()
            self.moved = self.moved or here[0] != theirs[0] or any(map(_differ, here[1], theirs[1]))
            if self.held:
                self._put(theirs)

    @staticmethod
    def _put(states: tuple[Any, Any]) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _differ(a: Any, b: Any) -> bool:
    return not np.array_equal(a, b)
