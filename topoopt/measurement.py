"""What one measurement says: frozen results of plain numbers, the language in which all rooms of topoopt speak.

A `Measurement` belongs to one optimizer step. Everything in it is a Python scalar, a tuple of them, or a numpy array
of a persistence diagram: nothing here holds a tensor, so a record never keeps weights alive or a device busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from topoopt.reading import Assessment, Decision, Phase, SpectralReading

__all__ = ["Assessment", "Cost", "Decision", "GroupMeasurement", "Measurement", "Phase", "SpectralReading"]


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
    """(lower, upper) since the last measurement; of this step at the first, NaN where no cloud is kept (`TopoConfig.keep`)."""
    distortion_total: tuple[float, float]
    """(lower, upper) since the first measurement; NaN where no cloud is kept."""
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
    pending: bool = False
    """Homology above H0 of this step is on its way: what `diagrams` holds above degree 0 is of `diagrams_step`, or absent."""
    largest_loop: float = math.nan
    """Longest lifetime in degree 1 over the diameter, of the step `diagrams_step`."""
    log_persistence: float = math.nan
    """Sum of log(death / birth) in degree 1, scale-free, of the step `diagrams_step`."""
    effective_rank: float = math.nan
    """Participation ratio of the centred cloud's covariance spectrum: (sum s)^2 / sum s^2 over its eigenvalues s."""
    silent: int = -1
    """Units that gave the same output on every sample of the batch of the last reading; -1 where they were not seen."""
    moved_share: float = 1.0
    """Share of the group's parameters that this optimizer moves; the rest is frozen or another optimizer's."""
    notes: tuple[str, ...] = ()
    """What was approximated or is outside the theory for this group."""


@dataclass(frozen=True)
class Cost:
    """What measuring costs."""

    seconds: float = 0.0
    """Time this measurement took on the training thread, its reading included."""
    share: float = 0.0
    """Share of the wall time since the start that measuring has taken so far, this measurement included; NaN while nothing
    but it has taken time yet: before the first step has passed."""
    setup_seconds: float = 0.0
    """Time that finding the neurons took, once; not in `share`."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything measured at one optimizer step: a reading of r, and what the step did to the neurons.

    Two are the same only if they are the same object: arrays inside have no single truth value.
    """

    step: int
    """Optimizer steps taken before this one (the first step is 0)."""
    lr: tuple[float, ...]
    """The user's learning rates, before the factor."""
    lr_scale: float
    """The factor on them in this step."""
    spectral: SpectralReading
    assessment: Assessment
    groups: Mapping[str, GroupMeasurement]
    decision: Decision | None = None
    cost: Cost = Cost()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What was not measured -> the reason."""
    notes: tuple[str, ...] = ()
    """What was approximated, or is not covered by the theory, with the reason."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Running totals: faults, stretched measurements, worker restarts, late results."""

    @property
    def phase(self) -> Phase:
        """Phase of the step; UNKNOWN where no estimate supports one."""
        return self.assessment.phase

    @property
    def proximity(self) -> float:
        """r = eta / eta* of the step as it was taken (after steering); NaN when unknown."""
        return self.assessment.proximity

    @property
    def edge(self) -> float | None:
        """e, the edge of stability in units of r, of the recognised update rule; None where it is not known."""
        return self.spectral.edge

    @property
    def eta_star(self) -> tuple[float, ...]:
        """lr / r for each parameter group: what its learning rate would be at r = 1."""
        return self.assessment.eta_star

    @property
    def eta_star_bracket(self) -> tuple[tuple[float, float], ...]:
        """(lr / r_spec, lr / r_pair) for each parameter group; 0 or inf where an end could not be measured."""
        return self.assessment.eta_star_bracket

    @property
    def estimator(self) -> str:
        """Which estimate `proximity` is: "spectral", "pairwise" or "none"."""
        return self.assessment.estimator

    @property
    def r_spec(self) -> float:
        """Spectral proximity, lr_scale included; NaN when not measured."""
        return self.spectral.r

    @property
    def r_pair(self) -> float:
        """Largest gain over the groups; NaN when no group was measured."""
        return max((group.gain for group in self.groups.values()), default=math.nan)

    @property
    def r_field(self) -> float:
        """Neuron-field proximity, when asked for."""
        return self.spectral.field

    @property
    def loss(self) -> float:
        """Loss of the step's own batch."""
        return self.spectral.loss

    @property
    def rule(self) -> str:
        """The update rule that was recognised, or "black box"."""
        return self.spectral.rule

    @property
    def engine(self) -> str:
        """How the Jacobian's products were taken."""
        return self.spectral.engine

    @property
    def spectrum(self) -> tuple[float, float]:
        """Both ends (lowest, highest) of the symmetric displacement Jacobian's spectrum, in units of r."""
        return self.spectral.low, self.spectral.high

    @property
    def products(self) -> int:
        """Jacobian products spent."""
        return self.spectral.products

    @property
    def probe(self) -> int:
        """Size of the batch; 0 when unknown."""
        return self.spectral.probe

    @property
    def seconds(self) -> float:
        """Time this measurement took on the training thread."""
        return self.cost.seconds

    @property
    def share(self) -> float:
        """Share of the wall time since the start that measuring has taken so far."""
        return self.cost.share

    def __repr__(self) -> str:
        e = "?" if self.edge is None else f"{self.edge:.3g}"
        return (
            f"<Measurement step {self.step}: {self.phase}, r {self.proximity:.4g} (edge {e}), {len(self.groups)} groups, "
            f"{self.seconds:.3g} s>"
        )

    def scalars(self, *, layers: bool = True) -> dict[str, float]:
        """Return a flat dict of Python floats under `topo/...`, for loggers; without NaN, and without `layers` on request."""
        values: dict[str, float] = {
            "topo/step": float(self.step),
            "topo/phase": float(list(Phase).index(self.phase)),
            "topo/proximity": self.proximity,
            "topo/edge": math.nan if self.edge is None else self.edge,
            "topo/r_over_edge": math.nan if not self.edge or self.spectral.warming else self.proximity / self.edge,
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
        for name, group in self.groups.items() if layers else ():
            values |= {f"topo/{name}/{key}": value for key, value in _group_scalars(group, self.step).items()}
        return {key: float(value) for key, value in values.items() if not math.isnan(value)}


def _group_scalars(group: GroupMeasurement, step: int) -> dict[str, float]:
    """What is of this step alone: homology and a layer's r of an earlier one are not told again as new."""
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
        "effective_rank": group.effective_rank,
        "silent": float(group.silent) if group.silent >= 0 else math.nan,
    }
    if group.total_persistence:
        scalars["persistence_h0"] = group.total_persistence[0]
    if group.diagrams_step == step and not group.pending:
        scalars |= {f"persistence_h{k}": value for k, value in enumerate(group.total_persistence)}
        scalars |= {"largest_loop": group.largest_loop, "log_persistence": group.log_persistence}
    if group.proximity is not None and group.proximity_step == step:
        scalars["proximity"] = group.proximity
    return scalars
