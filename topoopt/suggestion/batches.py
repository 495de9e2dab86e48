"""Batches of a data loader that is being trained from, without touching it: built anew, generators put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from topoopt.errors import MeasurementError

T = TypeVar("T")
LONGEST = 64
"""Items of a container that are looked into for generators: longer ones are data."""
DEEPEST = 8
"""Attributes of attributes that are looked into."""


def anew(loader: Any) -> Iterable[Any]:
    """What gives the batches that `loader` would give next, and leaves it alone.

    A torch `DataLoader` is made again: the same dataset and collate function, a copy of its sampler, no worker processes. The
    inside of accelerate's wrapper is taken. Anything else that can be gone through again is itself enough.

    Raises:
        MeasurementError: for an iterator, which looking at uses up, or a sampler that cannot be copied.
    """
    loader = getattr(loader, "base_dataloader", loader)
    data = loader.dataset if isinstance(loader, DataLoader) else loader
    if isinstance(data, Iterator):
        raise MeasurementError(
            f"the batches come from a {type(data).__name__}, which can be gone through only once: ask beforehand "
            "(topoopt.suggest), or train from a dataset"
        )
    if not isinstance(loader, DataLoader):
        return loader
    shared: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": loader.generator}
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=loader.batch_size, drop_last=loader.drop_last, **shared)
    if loader.batch_sampler is not None:
        return DataLoader(data, batch_sampler=_copied(loader.batch_sampler, data), **shared)
    return DataLoader(data, batch_size=None, sampler=_copied(loader.sampler, data), **shared)


def _copied(sampler: Any, data: Any) -> Any:
    """A sampler may count epochs, or keep a generator: the copy does. The data are not copied."""
    try:
        return copy.deepcopy(sampler, {id(data): data})
    except Exception as error:  # of a class of the user's
        raise MeasurementError(
            f"the {type(sampler).__name__} cannot be copied ({error}), so no batch is taken"
        ) from error


@contextmanager
def generators_kept(*roots: Any) -> Iterator[None]:
    """Random generators within these objects (a dataset's, a collate function's, a sampler's) are at the end as before."""
    back = [put for root in roots for put in _generators(root)]
    try:
        yield
    finally:
        for put in back:
            put()


def _generators(root: Any) -> Iterator[Callable[[], object]]:
    """For each generator that is found, what puts it back."""
    waiting, seen = [(root, 0)], set()
    while waiting:
        one, depth = waiting.pop()
        if id(one) in seen or depth > DEEPEST:
            continue
        seen.add(id(one))
        put = _state(one)
        if put is not None:
            yield put
        else:
            waiting += [(inner, depth + 1) for inner in _inside(one)]


def _state(one: Any) -> Callable[[], object] | None:
    if isinstance(one, torch.Generator):
        state = one.get_state()
        return lambda: one.set_state(state)
    if isinstance(one, np.random.Generator):
        now = copy.deepcopy(one.bit_generator.state)
        return lambda: setattr(one.bit_generator, "state", now)
    if isinstance(one, np.random.RandomState):
        held = one.get_state()
        return lambda: one.set_state(held)
    if isinstance(one, random.Random):
        python = one.getstate()
        return lambda: one.setstate(python)
    return None


def _inside(one: Any) -> list[Any]:
    if isinstance(one, Tensor | np.ndarray | nn.Module | str | bytes | int | float | type):
        return []
    if isinstance(one, dict):
        return list(one.values()) if len(one) <= LONGEST else []
    if isinstance(one, list | tuple | set):
        return list(one) if len(one) <= LONGEST else []
    found = list(vars(one).values()) if hasattr(one, "__dict__") else []
    if isinstance(one, FunctionType):
        found += [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
    owner = getattr(one, "__self__", None)
    return found if owner is None else [*found, owner]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- raises where a variable has no value yet
    except ValueError:
        return False
    return True


def accumulated(loader: Iterable[T], count: int) -> Iterator[list[T]]:
    """The loader's batches, by as many as one optimizer step takes; at the end of the data it begins again."""
    while True:
        batches, any_at_all = iter(loader), False
        while micro := list(islice(batches, count)):
            any_at_all = True
            yield micro
        if not any_at_all:
            return
