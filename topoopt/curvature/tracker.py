"""Estimates along a run: warm starts, the engine that worked, and a cold restart now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.engines import ENGINES, Reduce
from topoopt.curvature.lanczos import Memory
from topoopt.curvature.spectrum import FIRST, Block, SpectralEstimate, Spectrum, opened
from topoopt.errors import ConfigError

RESTART = 20
"""Every so many estimates start cold, with no fewer than `FIRST` products: a warm start can follow an eigenvector that is no
longer the largest."""


class Tracked:
    """Estimates on one graph, the first of all weights, with what the tracker remembers."""

    def __init__(self, tracker: SpectralTracker, spectrum: Spectrum) -> None:
        self._tracker, self.spectrum = tracker, spectrum

    def estimate(self, products: int | None = None) -> SpectralEstimate:
        """r of all weights, from the last estimate's vector."""
        return self._tracker._estimate(self.spectrum, products)

    def block(self, block: Block, products: int | None = None) -> SpectralEstimate:
        """r of a block of weights, from the part of the last vector that lies in it."""
        memory, count = self._tracker._memory, products or self._tracker.products
        start = None if memory is None else memory.vectors[0]
        return self.spectrum.estimate(products=count, start=start, block=block, seed=self._tracker.seed)


class SpectralTracker:
    """Estimates r again and again while a model trains.

    Raises:
        ConfigError: for an engine that is not known.
    """

    def __init__(self, optimizer: Optimizer, products: int = 8, engine: str = "auto", seed: int = 0) -> None:
        if engine != "auto" and engine not in ENGINES:
            raise ConfigError(f"engine={engine!r} is not known: give auto, {', '.join(ENGINES)}")
        self.optimizer, self.products, self.seed = optimizer, products, seed
        self._engine = engine
        self._memory: Memory | None = None
        self._count = 0

    @property
    def is_warm(self) -> bool:
        """Whether there is an earlier estimate to start from."""
        return self._memory is not None

    @contextmanager
    def open(
        self,
        loss: Callable[[], Any],
        *,
        when: str = "upcoming",
        grads: str = "auto",
        reduce: Reduce | None = None,
        model: nn.Module | None = None,
    ) -> Iterator[Tracked]:
        """Evaluate the loss once; see `spectrum.proximity` for the arguments. The engine that works is remembered."""
        options = {"when": when, "grads": grads, "reduce": reduce, "model": model, "seed": self.seed}
        with opened(self.optimizer, loss, engine=self._engine, **options) as spectrum:  # type: ignore[arg-type]
            self._engine = spectrum.engine.name
            yield Tracked(self, spectrum)

    def estimate(self, loss: Callable[[], Any], *, block: Block | None = None, **options: Any) -> SpectralEstimate:
        """One estimate on a graph of its own."""
        with self.open(loss, **options) as tracked:
            return tracked.estimate() if block is None else tracked.block(block)

    def _estimate(self, spectrum: Spectrum, products: int | None) -> SpectralEstimate:
        count, start = products or self.products, self._memory
        if start is not None and self._count % RESTART == 0:
            count, start = max(count, FIRST), None
        found = spectrum.estimate(products=count, start=start, seed=self.seed + self._count)
        self._count += 1
        self._memory = found.memory if found.r == found.r else None
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and a tensor (this rank's part of it, where weights are sharded)."""
        memory = (
            None if self._memory is None else {"vectors": self._memory.vectors, "values": list(self._memory.values)}
        )
        return {"engine": self._engine, "memory": memory, "count": self._count, "part": self._part()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._engine, self._count, saved = state["engine"], int(state["count"]), state["memory"]
        if saved is None or state["part"] != self._part():  # another rank's part: a cold start is better
            self._memory = None
        else:
            self._memory = Memory(saved["vectors"], tuple(saved["values"]))

    def _part(self) -> tuple[int, int] | None:
        return sharding.part_of_rank([p for group in self.optimizer.param_groups for p in group["params"]])
