"""The spectral end of the bracket inside a run: one estimate a measurement, and one group's own in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.curvature import SpectralTracker, Tracked, field_of, recognise
from topoopt.errors import NotDefinedError
from topoopt.measurement import SpectralReading
from topoopt.neurons import NeuronGroup, unwrap
from topoopt.optimizer import distributed


class Spectral:
    """Keeps the warm start between measurements and takes the groups in turn."""

    def __init__(self, optimizer: Optimizer, config: TopoConfig) -> None:
        self._optimizer, self._config = optimizer, config
        self._tracker = SpectralTracker(optimizer, config.products, config.engine, config.seed)
        self._turn = 0

    def read(
        self, loss: Callable[[], Any] | None, model: nn.Module, groups: list[NeuronGroup] | None, *, closure_given: bool
    ) -> SpectralReading:
        """Estimate r of the coming step, at the weights as they stand; without `groups` r alone."""
        groups = groups or []
        rule, edge = recognise(self._optimizer)
        if self._config.estimator == "pairwise":
            return SpectralReading(edge=edge, rule=rule, reason='estimator="pairwise" was asked for')
        if loss is None:
            return SpectralReading(
                edge=edge, rule=rule, reason="no loss was given, so the step's Jacobian cannot be formed; pass loss="
            )
        # A closure computes this step's gradients after us: what lies in .grad is the last step's.
        grads = "probe" if closure_given else "auto"
        with self._tracker.open(loss, grads=grads, reduce=distributed.reducer(model), model=model) as tracked:
            estimate = tracked.estimate()
            field, unknown = self._field(tracked, model, groups)
            return SpectralReading(
                r=estimate.r,
                edge=estimate.edge,
                low=estimate.low,
                high=estimate.high,
                field=field,
                loss=estimate.loss,
                rule=estimate.rule,
                engine=estimate.engine,
                products=estimate.products,
                probe=estimate.probe_size,
                notes=(*estimate.notes, *unknown),
                reason="" if math.isfinite(estimate.r) else "; ".join(estimate.notes) or "the estimate is not finite",
                group=self._one_group(tracked, model, groups),
            )

    def _one_group(self, tracked: Tracked, model: nn.Module, groups: list[NeuronGroup]) -> tuple[str, float] | None:
        """Block-restricted proximity of the next group in turn: which layer is nearest its critical point.

        It gets a third of the products: it is there to compare layers, not to steer by.
        """
        if not self._config.per_group or not groups:
            return None
        group = groups[self._turn % len(groups)]
        self._turn += 1
        parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
        block: dict[Tensor, Tensor] = {parameters[name]: mask for name, mask in group.masks(model).items()}
        return group.name, tracked.block(block, max(2, self._config.products // 3)).r

    def _field(self, tracked: Tracked, model: nn.Module, groups: list[NeuronGroup]) -> tuple[float, tuple[str, ...]]:
        """The largest r_field of the groups, or NaN and why it is not known."""
        if not self._config.field or not groups:
            return math.nan, ()
        parameters = list(unwrap(model).parameters())
        try:
            return max(field_of(tracked.spectrum, group.indices(model), parameters) for group in groups), ()
        except NotDefinedError as error:
            return math.nan, (f"r_field: {error}",)

    def state_dict(self) -> dict[str, Any]:
        """The warm start and whose turn it is."""
        return {"tracker": self._tracker.state_dict(), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._tracker.load_state_dict(state["tracker"])
        self._turn = int(state["turn"])
