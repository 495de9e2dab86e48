"""What one measurement says: frozen results of plain numbers, the language in which all rooms of topoopt speak.

A `Measurement` belongs to one optimizer step. Everything in it is a Python scalar, a tuple of them, or a numpy array
of a persistence diagram: nothing here holds a tensor, so a record never keeps weights alive or a device busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Phase(StrEnum):
    """Where the step stands against the topological critical learning rate (r = eta / eta*, e = edge of stability)."""

    CONSTRAINED = "constrained"
    """r < 1: the bi-Lipschitz guarantee holds locally; no two neurons merged in this step."""
    PERMISSIVE = "permissive"
    """1 <= r < e: the guarantee is lost; nothing forces a change of the topology."""
    SIMPLIFICATION = "simplification"
    """r >= e: at or past the edge of stability, where simplification was observed."""
    UNKNOWN = "unknown"
    """No estimator could run; `Measurement.skipped` says why."""


@dataclass(frozen=True)
class GroupMeasurement:
    """One neuron group at one step. Distances are Euclidean, in the units of the weights.

    Lower and upper distortion are min and max over pairs of |x_i' - x_j'| / |x_i - x_j|.
    """

    n: int
    """Number of neurons."""
    d: int
    """Dimension of one neuron: all parameters of the unit."""
    gain: float
    """r_pair = max over pairs |D_i - D_j| / |x_i - x_j| of this step's displacement D: a lower bound on r."""
    certified: bool
    """gain < 1: this step was bi-Lipschitz on the neurons, proved without assumptions."""
    distortion: tuple[float, float]
    """(lower, upper) of this step."""
    distortion_window: tuple[float, float]
    """(lower, upper) since the last measurement; (1, 1) at the first."""
    distortion_total: tuple[float, float]
    """(lower, upper) since the first measurement."""
    contraction: float
    """max over pairs of -<D_i - D_j, x_i - x_j> / |x_i - x_j|^2: near 1, a pair is about to merge."""
    merge_margin: float
    """Smallest H0 death: the distance of the two nearest neurons."""
    diagrams: tuple[np.ndarray, ...]
    """Persistence diagrams by degree, (k, 2) float64 births and deaths; essential classes have death inf."""
    diagrams_step: int
    """The step whose weights `diagrams` describe: older than the measurement when certified unchanged or still on its
    way from the worker; -1 when there is none yet."""
    covering_radius: float
    """0 when homology is exact; else the landmarks' covering radius c: bottleneck error <= 2 c."""
    resolution: float
    """Features of `diagrams` with death / birth above this are certified still present (theory: log b - log a)."""
    recomputed: bool
    """Homology above H0 was requested anew at this step (False: the certificate still covers what is watched)."""
    vanishing: int
    """Neurons with norm at most `vanishing_tolerance` times the root mean square norm."""
    twins: int
    """Neurons that have another within `twin_tolerance` times the root mean square norm."""
    vanishing_tolerance: float
    twin_tolerance: float
    unresolved_twins: int = 0
    """Neurons whose nearest twin is closer than the storage dtype can tell: rounding noise."""
    gain_pair: tuple[int, int] = (-1, -1)
    """The pair that attains `gain`."""
    proximity: float | None = None
    """Spectral proximity restricted to this group's parameters, when measured (`proximity_step` says when)."""
    proximity_step: int = -1
    diameter: float = math.nan
    """Largest pairwise distance."""
    total_persistence: tuple[float, ...] = ()
    """Sum of finite lifetimes of each degree of `diagrams`."""
    notes: tuple[str, ...] = ()
    """What was approximated or is outside the theory for this group."""


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


@dataclass(frozen=True)
class Measurement:
    """Everything measured at one optimizer step."""

    step: int
    """Optimizer steps taken before this one (the first step is 0)."""
    phase: Phase
    proximity: float
    """r = eta / eta* of the step as it was taken (after steering); NaN when unknown."""
    edge: float
    """e, the edge of stability in units of r, of the recognised update rule."""
    eta_star: tuple[float, ...]
    """lr / r for each parameter group: what its learning rate would be at r = 1."""
    eta_star_bracket: tuple[tuple[float, float], ...]
    """(lr / r_spec, lr / r_pair) for each parameter group; 0 or inf where an end could not be measured."""
    estimator: str
    """"spectral", "pairwise" or "none": which estimate `proximity` is."""
    lr: tuple[float, ...]
    """The user's learning rates, before the factor."""
    lr_scale: float
    """The factor on them in this step."""
    groups: Mapping[str, GroupMeasurement]
    seconds: float
    """Time this measurement took on the training thread."""
    share: float
    """Share of the wall time since the start that measuring has taken so far."""
    skipped: Mapping[str, str]
    """What was not measured -> the reason."""
    r_spec: float = math.nan
    """Spectral proximity, lr_scale included; NaN when not measured."""
    r_pair: float = math.nan
    """Largest gain over the groups."""
    r_field: float = math.nan
    """Neuron-field proximity, when asked for."""
    loss: float = math.nan
    """Loss on the probe."""
    rule: str = ""
    """The update rule that was recognised, or "black box"."""
    engine: str = ""
    """How the Jacobian's products were taken."""
    decision: Decision | None = None
    notes: tuple[str, ...] = ()
    """What was approximated, or is not covered by the theory, with the reason."""
    spectrum: tuple[float, float] = (math.nan, math.nan)
    """Both ends (lowest, highest) of the symmetric displacement Jacobian's spectrum, in units of r."""
    products: int = 0
    """Jacobian products spent."""
    probe: int = 0
    """Size of the probe batch (first dimension of the first captured tensor); 0 when unknown."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Running totals: faults, stretched measurements, worker restarts, late results."""

    def scalars(self) -> dict[str, float]:
        """Return a flat dict of Python floats under `topo/...`, for loggers. NaN values are left out."""
        values: dict[str, float] = {
            "topo/step": float(self.step),
            "topo/phase": float(list(Phase).index(self.phase)),
            "topo/proximity": self.proximity,
            "topo/edge": self.edge,
            "topo/r_spec": self.r_spec,
            "topo/r_pair": self.r_pair,
            "topo/r_field": self.r_field,
            "topo/lr_scale": self.lr_scale,
            "topo/loss": self.loss,
            "topo/seconds": self.seconds,
            "topo/share": self.share,
            "topo/skipped": float(len(self.skipped)),
        }
        for i, (eta, (low, high)) in enumerate(zip(self.eta_star, self.eta_star_bracket)):
            values |= {f"topo/eta_star/{i}": eta, f"topo/eta_star_low/{i}": low, f"topo/eta_star_high/{i}": high}
        for name, group in self.groups.items():
            values |= {f"topo/{name}/{key}": value for key, value in _group_scalars(group).items()}
        return {key: float(value) for key, value in values.items() if not math.isnan(value)}


def _group_scalars(group: GroupMeasurement) -> dict[str, float]:
    scalars = {
        "gain": group.gain,
        "contraction": group.contraction,
        "distortion_lower": group.distortion_window[0],
        "distortion_upper": group.distortion_window[1],
        "distortion_total_lower": group.distortion_total[0],
        "distortion_total_upper": group.distortion_total[1],
        "merge_margin": group.merge_margin,
        "diameter": group.diameter,
        "vanishing": float(group.vanishing),
        "twins": float(group.twins),
        "resolution": group.resolution,
    }
    scalars |= {f"persistence_h{k}": value for k, value in enumerate(group.total_persistence)}
    if group.proximity is not None:
        scalars["proximity"] = group.proximity
    return scalars
