"""From readings of r to a phase and a bracket for eta*: plain numbers in, plain numbers out.

r = eta / eta* is the Lipschitz constant of one step's displacement map. Two estimates enclose it: r_spec, the norm of
that map's Jacobian at the current weights (Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Theorem 1's sufficient
condition, taken locally), and r_pair, the largest stretch of the displacement over pairs of neurons, a lower bound. Only
the first supports a phase.
"""

from __future__ import annotations

import math

from topoopt.measurement import Assessment, Phase, SpectralReading

BAND = 0.05
"""Width of the hysteresis, relative to a threshold: a phase is entered at its threshold and left this far below it."""

LOWER_BOUND = (
    "only r_pair is known, a lower bound on r: it certifies this step's neurons, but lr / r_pair is an upper bound on "
    "eta*, never a safe rate"
)
NO_EDGE = (
    "the edge of stability of this update rule is not known: past r = 1 no more is said than that the guarantee is lost"
)


def assess(
    reading: SpectralReading,
    *,
    r_pair: float = math.nan,
    estimator: str = "auto",
    stalled: str = "",
    previous: Phase = Phase.UNKNOWN,
) -> Assessment:
    """Name the phase where an estimate supports one, and bracket eta*.

    Args:
        reading: of the step as it was taken.
        r_pair: pairwise proximity of the step as taken; NaN when not measured.
        estimator: "auto", "spectral" or "pairwise"; the last gives no phase.
        stalled: why nothing moves, when nothing does: then a low r is no phase, and no eta* is read off it.
        previous: phase of the reading before, for the hysteresis.
    """
    lr = [rate * reading.scale for rate in reading.lr]
    r = math.nan if estimator == "pairwise" else reading.r
    skipped, notes = _left_out(reading, r, r_pair, estimator, stalled)
    trusted = r if not (reading.warming or stalled) else math.nan
    phase, held = _phase(trusted, reading.edge, previous)
    if phase is Phase.UNKNOWN and r_pair >= 1.0:
        notes.append(
            "at least permissive: r_pair >= 1, so that the guarantee is lost; how far past it r lies is not known"
        )
    if held:
        notes.append(f"the phase is held at {phase} by hysteresis: r is within {BAND:.0%} below its threshold")
    if reading.edge is None and trusted >= 1.0:
        notes.append(NO_EDGE)
    if not math.isnan(trusted) and r_pair > r:
        notes.append(
            "r_pair exceeds r_spec: the Jacobian is of this point and this gradient, the displacement reaches further "
            "and may carry momentum"
        )
    return Assessment(
        phase=phase,
        proximity=r,
        estimator="spectral" if not math.isnan(r) else "pairwise" if not math.isnan(r_pair) else "none",
        eta_star=tuple(_critical(rate, trusted) for rate in lr),
        eta_star_bracket=tuple(_bracket(rate, trusted, r_pair) for rate in lr),
        skipped=skipped,
        notes=tuple(notes),
    )


def _left_out(
    reading: SpectralReading, r: float, r_pair: float, estimator: str, stalled: str
) -> tuple[dict[str, str], list[str]]:
    """Why there is no phase or no eta*, where there is none; and what is to be said of the estimate."""
    skipped: dict[str, str] = {}
    notes: list[str] = []
    if math.isnan(r) and reading.warming:
        skipped["phase"] = f"warming up: {reading.warming}"
    elif math.isnan(r):
        why = 'estimator="pairwise" gives no phase' if estimator == "pairwise" else f"r is not known ({reading.reason})"
        skipped["phase"] = why
        if not math.isnan(r_pair):
            notes.append(LOWER_BOUND)
    elif reading.warming:
        skipped["phase"] = f"warming up: {reading.warming}"
    elif stalled:
        skipped["phase"] = f"the run has stalled or collapsed: {stalled}"
    if 0.0 in reading.lr and not math.isnan(r):
        skipped["eta_star"] = "a learning rate of 0 tells nothing of its parameter group's critical rate"
    return skipped, notes


def _phase(r: float, edge: float | None, previous: Phase) -> tuple[Phase, bool]:
    """Return the phase and whether hysteresis held it.

    Rising is immediate, so CONSTRAINED is never said of r >= 1; falling needs r below the threshold by `BAND`.
    """
    if math.isnan(r):
        return Phase.UNKNOWN, False
    past = edge is not None and r >= edge
    plain = Phase.SIMPLIFICATION if past else Phase.PERMISSIVE if r >= 1.0 else Phase.CONSTRAINED
    near = edge is not None and r >= (1 - BAND) * edge
    if previous is Phase.SIMPLIFICATION and plain is Phase.PERMISSIVE and near:
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
