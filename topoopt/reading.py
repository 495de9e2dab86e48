"""What one reading of r says, where the step stands by it, and what a policy makes of it: frozen, of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where the step stands against the topological critical learning rate (r = eta / eta*, e = edge of stability)."""

    CONSTRAINED = "constrained"
    """r < 1: the bi-Lipschitz guarantee holds locally; no two neurons merged in this step."""
    PERMISSIVE = "permissive"
    """1 <= r < e: the guarantee is lost; nothing forces a change of the topology."""
    SIMPLIFICATION = "simplification"
    """r >= e: at or past the edge of stability, where simplification was observed."""
    UNKNOWN = "unknown"
    """No estimate supports a phase (or the preconditioner is still warming up); `Measurement.skipped` says why."""


@dataclass(frozen=True, eq=False)
class SpectralReading:
    """One reading of r = eta / eta*: what a due step's own computation says of the step, in plain numbers.

    Spectral quantities are in units of r and of the step as it was taken (`scale` included); NaN where unknown.
    """

    step: int = -1
    """Optimizer steps taken before the one that was read; -1: not tied to a step."""
    r: float = math.nan
    """Spectral proximity of the step; NaN with `reason` where there is none."""
    edge: float | None = None
    """e, the edge of stability in units of r; None for a rule whose edge is not known."""
    lr: tuple[float, ...] = ()
    """The user's learning rate of each parameter group, before the factor."""
    scale: float = 1.0
    """The factor on them in this step."""
    low: float = math.nan
    """Lowest end of the spectrum of -dD/dx."""
    high: float = math.nan
    """Highest end."""
    field: float = math.nan
    """r_field, when asked for."""
    products: int = 0
    """Jacobian products spent on it."""
    seconds: float = 0.0
    """Time it took on the training thread, the look-on at the user's step included."""
    rule: str = ""
    """The update rule that was recognised, or "black box"."""
    engine: str = ""
    """How products were taken."""
    probe: int = 0
    """Size of the batch that was read on (first dimension of the first tensor that enters the model); 0 when unknown."""
    reason: str = ""
    """Why `r` is unknown, when it is."""
    warming: str = ""
    """Why r is of a preconditioner that is still warming up, when it is: then it is no phase of the run."""
    notes: tuple[str, ...] = ()
    """What was approximated, or is not covered by the theory."""
    group: tuple[str, float] | None = None
    """(name, r) of the one neuron group whose block of the Jacobian was measured along with it."""
    loss: float = math.nan
    """Loss of the step's own batch (the sum of what backward was called on, over the step's micro-batches)."""
    baseline: float = math.nan
    """Loss of the best constant prediction on this batch, where labels were seen (cross entropy: the labels' entropy)."""
    grad_norm: float = math.nan
    """Norm of the gradient that the optimizer found."""
    update_ratio: float = math.nan
    """|D| / |x| of the step: the displacement's norm over the weights' norm."""
    clipped: float = 1.0
    """Length of the gradient that the optimizer found over the length that backward made; 1 where nothing stood between."""
    silent: float = math.nan
    """Share of units (over the activations that were seen) that gave the same output on every sample of the batch."""
    normalized: bool = False
    """Whether the model holds normalisation layers: only the direction of the weights before them counts."""

    @property
    def known(self) -> bool:
        """Whether r is known and is of the run, not of a preconditioner warming up."""
        return not math.isnan(self.r) and not self.warming

    def at(self, scale: float, update_ratio: float = math.nan) -> SpectralReading:
        """The same reading, of a step taken with this factor on its rates: r and the spectrum are proportional to it."""
        group = None if self.group is None else (self.group[0], self.group[1] * scale)
        ends = {"r": self.r * scale, "low": self.low * scale, "high": self.high * scale, "field": self.field * scale}
        return replace(self, scale=scale, update_ratio=update_ratio, group=group, **ends)


@dataclass(frozen=True)
class Assessment:
    """Where a step stands, and what its parameter groups' learning rates would be at r = 1."""

    phase: Phase
    proximity: float
    """r of the step, NaN when no spectral estimate supports one."""
    estimator: str
    """"spectral", "pairwise" (a lower bound: no phase but "at least permissive") or "none"."""
    eta_star: tuple[float, ...]
    """lr / r for each parameter group; NaN when r is unknown or the rate is 0."""
    eta_star_bracket: tuple[tuple[float, float], ...]
    """(lr / r_spec, lr / r_pair) for each parameter group; 0 or inf where an end is unknown."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What the policy did to the learning rate of one step, and why."""

    scale: float
    """Factor on the user's learning rate."""
    policy: str
    """Name of the policy that spoke."""
    rule: str
    """What limited the factor: "none", "target", "floor", "ceiling", "growth", "guard", "fault", "certificate", ..."""
    note: str = ""
    """One sentence for people, empty when nothing is worth saying."""
    events: tuple[str, ...] = ()
    """Guard events since the last decision (a loss spike, a hand-over, ...)."""
    weights: str = ""
    """What is asked of the run beside the factor: "keep" remembers the weights as they stand before this step, "back" goes
    back to what was remembered; "" for neither."""
