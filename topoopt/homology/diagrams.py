"""What can be read off a persistence diagram: (k, 2) float64 arrays of births and deaths, essential deaths inf."""

from __future__ import annotations

import math

import numpy as np

from topoopt.errors import MeasurementError
from topoopt.homology.matching import bottleneck_distance


def bottleneck(a: np.ndarray, b: np.ndarray, *, log: bool = False) -> float:
    """Bottleneck distance of two diagrams, exactly.

    Essential classes are matched with each other, by birth; if their numbers differ the distance is inf. With `log`
    births and deaths are compared on a logarithmic scale; where all births are 0, as in H0, that is the distance of the
    sorted log deaths, since nothing can be matched to the diagonal.

    Raises:
        MeasurementError: for an array that is no diagram, or a mixture of zero and positive births with `log`.
    """
    a, b = _diagram(a), _diagram(b)
    finite_a, finite_b = (d[np.isfinite(d[:, 1])] for d in (a, b))
    births_a, births_b = (np.sort(d[~np.isfinite(d[:, 1]), 0]) for d in (a, b))
    if len(births_a) != len(births_b):
        return math.inf
    if log and not (finite_a[:, 0].any() or finite_b[:, 0].any()):
        return _sorted_log_deaths(finite_a[:, 1], finite_b[:, 1])
    if log:
        finite_a, finite_b = (_log(d) for d in (finite_a, finite_b))
        if (births_a > 0).tolist() != (births_b > 0).tolist():
            return math.inf
        births_a, births_b = (np.log(births[births > 0]) for births in (births_a, births_b))
    essential = float(np.abs(births_a - births_b).max(initial=0.0))
    return max(essential, bottleneck_distance(finite_a, finite_b))


def total_persistence(diagram: np.ndarray, *, log: bool = False) -> float:
    """Sum of the finite lifetimes death - birth; with `log` of log(death / birth), features born at 0 left out."""
    return float(_lifetimes(diagram, log).sum())


def log_persistence(diagram: np.ndarray) -> float:
    """Sum of log(death / birth) over the finite features born above 0: a diagram's size, whatever the units of its cloud.

    0 for a diagram without such features, and for H0, whose births are all 0.
    """
    return total_persistence(diagram, log=True)


def largest_loop(diagram: np.ndarray) -> float:
    """Longest finite lifetime death - birth, 0 where there is none; over the cloud's diameter it has no units."""
    return float(_lifetimes(diagram, False).max(initial=0.0))


def persistence_entropy(diagram: np.ndarray, *, log: bool = False) -> float:
    """Shannon entropy (nats) of the finite lifetimes as shares of their sum; 0 for fewer than two features."""
    lifetimes = _lifetimes(diagram, log)
    lifetimes = lifetimes[lifetimes > 0]
    shares = lifetimes / lifetimes.sum() if len(lifetimes) else lifetimes
    return float(-(shares * np.log(shares)).sum()) + 0.0


def betti_curve(diagram: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Number of features alive (birth <= s < death) at each of the scales: (m,) -> (m,) int64."""
    d = _diagram(diagram)
    born = np.searchsorted(np.sort(d[:, 0]), scales, side="right")
    dead = np.searchsorted(np.sort(d[:, 1]), scales, side="right")
    return (born - dead).astype(np.int64)


def prominent(diagram: np.ndarray, gap: float = 0.0, *, log: bool = True) -> np.ndarray:
    """Return the features above the widest gap in the sorted lifetimes, longest first: the ones that stand out.

    Lifetimes are log(death / birth) with `log`, else death - birth. The diagonal counts as a feature of lifetime 0, so a
    single feature stands out by itself. Where the widest gap is not above `gap`, none does. Essential classes always do.
    """
    d = _diagram(diagram)
    essential, finite = d[~np.isfinite(d[:, 1])], d[np.isfinite(d[:, 1])]
    finite = finite[finite[:, 0] > 0] if log else finite
    lifetimes = _lifetimes(finite, log)
    order = np.argsort(-lifetimes, kind="stable")
    gaps = -np.diff(np.append(lifetimes[order], 0.0))
    kept = int(gaps.argmax()) + 1 if len(gaps) and gaps.max() > gap else 0
    return np.concatenate([essential, finite[order][:kept]])


def _diagram(diagram: np.ndarray) -> np.ndarray:
    d = np.asarray(diagram, dtype=np.float64)
    if d.ndim != 2 or d.shape[1] != 2 or np.isnan(d).any():
        raise MeasurementError(
            f"a diagram is a (k, 2) array of births and deaths without NaN; this has shape {d.shape}"
        )
    return d


def _lifetimes(diagram: np.ndarray, log: bool) -> np.ndarray:
    d = _diagram(diagram)
    d = d[np.isfinite(d[:, 1])]
    if not log:
        return d[:, 1] - d[:, 0]
    d = d[d[:, 0] > 0]
    return np.log(d[:, 1] / d[:, 0])


def _sorted_log_deaths(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.sort(a), np.sort(b)
    if len(a) != len(b) or ((a == 0) != (b == 0)).any():
        return math.inf  # a death of 0 is infinitely far from any other
    return float(np.abs(np.log(a[a > 0]) - np.log(b[b > 0])).max(initial=0.0))


def _log(diagram: np.ndarray) -> np.ndarray:
    if (diagram <= 0).any():
        raise MeasurementError("log needs positive births and deaths; here some are 0 and others are not")
    return np.log(diagram)
