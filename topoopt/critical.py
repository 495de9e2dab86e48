"""From estimates of r to a phase and a bracket for eta*: plain numbers in, plain numbers out.

r = eta / eta* is the Lipschitz constant of one step's displacement map. Two estimates enclose it: r_spec, the norm of
that map's Jacobian at the current weights (Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Theorem 1's sufficient
condition, taken locally), and r_pair, the largest stretch of the displacement over pairs of neurons, a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from topoopt.measurement import Assessment, Phase

BAND = 0.05
"""Width of the hysteresis, relative to a threshold: a phase is entered at its threshold and left this far below it."""

LOWER_BOUND = (
    "proximity is r_pair, a lower bound on r: it certifies this step's neurons, but lr / r_pair is an upper bound on "
    "eta*, never a safe rate"
)


def assess(
    *,
    r_spec: float,
    r_pair: float,
    edge: float,
    lr: Sequence[float],
    estimator: str = "auto",
    previous: Phase = Phase.UNKNOWN,
) -> Assessment:
    """Choose the estimate, name the phase and bracket eta*.

    Args:
        r_spec: spectral proximity of the step as taken; NaN when not measured.
        r_pair: pairwise proximity of the step as taken; NaN when not measured.
        edge: e, the edge of stability of the update rule in units of r (2 for gradient descent).
        lr: learning rate of each parameter group as it was in the step.
        estimator: "auto" (spectral where known, else pairwise), "spectral" or "pairwise".
        previous: phase of the measurement before, for the hysteresis.
    """
    proximity, used = _choose(r_spec, r_pair, estimator)
    skipped: dict[str, str] = {}
    notes: list[str] = []
    if used == "none":
        skipped["phase"] = f'no estimate of r is known (estimator="{estimator}"): neither bound could be measured'
    if used == "pairwise":
        notes.append(LOWER_BOUND)
    if r_pair > r_spec:
        notes.append(
            "r_pair exceeds r_spec: the Jacobian is of this point and this gradient, the displacement reaches further "
            "and may carry momentum"
        )
    if used != "none" and 0.0 in lr:
        skipped["eta_star"] = "a learning rate of 0 tells nothing of its parameter group's critical rate"
    phase, held = _phase(proximity, edge, previous)
    if held:
        notes.append(f"the phase is held at {phase} by hysteresis: r is within {BAND:.0%} below its threshold")
    return Assessment(
        phase=phase,
        proximity=proximity,
        estimator=used,
        eta_star=tuple(_critical(rate, proximity) for rate in lr),
        eta_star_bracket=tuple(_bracket(rate, r_spec, r_pair) for rate in lr),
        skipped=skipped,
        notes=tuple(notes),
    )


def _choose(r_spec: float, r_pair: float, estimator: str) -> tuple[float, str]:
    candidates = {"spectral": r_spec, "pairwise": r_pair}
    for name in candidates if estimator == "auto" else (estimator,):
        if not math.isnan(candidates[name]):
            return candidates[name], name
    return math.nan, "none"


def _phase(r: float, edge: float, previous: Phase) -> tuple[Phase, bool]:
    """Return the phase and whether hysteresis held it.

    Rising is immediate, so CONSTRAINED is never said of r >= 1; falling needs r below the threshold by `BAND`.
    """
    if math.isnan(r):
        return Phase.UNKNOWN, False
    plain = Phase.SIMPLIFICATION if r >= edge else Phase.PERMISSIVE if r >= 1.0 else Phase.CONSTRAINED
    if previous is Phase.SIMPLIFICATION and plain is Phase.PERMISSIVE and r >= (1 - BAND) * edge:
        return Phase.SIMPLIFICATION, True
    if previous in (Phase.PERMISSIVE, Phase.SIMPLIFICATION) and plain is Phase.CONSTRAINED and r >= 1 - BAND:
        return Phase.PERMISSIVE, True
    return plain, False


def _critical(lr: float, r: float) -> float:
    """eta* = lr / r; an r of 0 at a positive rate means that no rate is critical (inf)."""
    if math.isnan(r) or lr == 0.0:
        return math.nan
    return lr / r if r > 0 else math.inf


def _bracket(lr: float, r_spec: float, r_pair: float) -> tuple[float, float]:
    ends = [end for end in (_critical(lr, r_spec), _critical(lr, r_pair)) if not math.isnan(end)]
    low = min(ends) if not math.isnan(_critical(lr, r_spec)) else 0.0
    high = max(ends) if not math.isnan(_critical(lr, r_pair)) else math.inf
    return low, high
