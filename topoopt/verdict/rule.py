"""The rule: a short list of thresholds, each fitted on the runs of the first set of `benchmarks/verdict.py`.

Those are 1,484 runs of 212 small tasks (multilayer, residual, convolutional, attention, recurrent, on graphs and sets; with and
without normalisation; images, tables, text, regression, noise; batches of 16 to 512; gradient descent, momentum of 0.5 to 0.95,
Adam's family with beta1 of 0 to 0.95) at seven rates each, read over their first 100 steps and judged by the final loss of
the grid. Thresholds on r are in units of sqrt(1 - beta): in these the best rates of all update rules read alike, where in
units of the edge e they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from topoopt.measurement import SpectralReading
from topoopt.verdict.evidence import ENOUGH, Evidence, gather, latest, median
from topoopt.verdict.numbers import number

HIGH = 12.0
"""Median r / sqrt(1 - beta) above which a rate is too high: the edge of stability at a beta of 0.9. Flat from 8 up, where the
weights, the loss or the units have said so of most runs before."""
STRAIN, NORMALIZED = 5.5, 1.5
"""A rate is too high where (growth of the weights' length over the first 100 steps) sqrt(largest loss / first loss), times
NORMALIZED for a model with normalisation layers, is over STRAIN. A step that is too long throws the weights outwards, where
saturated or scale-free layers hide it from r. Flat from 4.5 to 7, where larger ones call more runs right that end far off, and
from 1 to 1.9.
"""
LOW, LOW_BATCH, LOW_GRADIENT = 0.3, 0.6, 0.5
"""Median r / sqrt(1 - beta) under which a rate is too low:
(LOW / left) (batch / 64)^LOW_BATCH (trend of the gradient)^LOW_GRADIENT.

`left` is the share of its loss that a run keeps over the window (last third against first), the trend that of the gradient's
length. A loss that falls far has room for a larger rate; in small batches noise takes it away; a gradient that has begun to
shrink says that the run is on its way to the end, one that still grows that it is only leaving its start. Each set of data
counts alike in the fit: most are of few runs, and among them are those whose loss has a floor. LOW is flat from 0.25 to 0.35;
smaller ones call more runs right that end far off.
"""
MOST = 2.5
"""Largest lower threshold: a loss that falls all at once within the window, as of deep networks that leave a plateau, says
little of the rate. Flat from 2 up, where larger ones send more runs too far."""
SMALLEST_LEFT, TRENDS, TYPICAL_BATCH = 0.02, (0.15, 7.0), 64
"""Bounds of `left` and of the gradient's trend; the batch that is assumed where its size is not known. Both count as 1 where
they are not known."""
SOLVED = 0.002
"""A loss this far below its start has taken its curvature with it, so that r tells nothing against the rate: all eight
fitted runs that were this far after 100 steps passed as right, at r of down to a tenth of what is right elsewhere."""
DEAD = 0.6
"""Rise of the share of silent units: 83 fitted runs rose by more, three of which ended within 1.5 times the best."""
STUCK, SPIKE, BACK, SILENCED = 0.9, 1.4, 1.25, 0.3
"""A loss over 0.9 of the best constant prediction's is collapsed where something shows that it has moved: a spike to 1.4
times its start, a rise to 1.25 times what it had reached, or 0.3 more silent units: 80 fitted runs (74 of them by their
units), all too high but three, two of these of tasks on which no rate did better by a tenth.
"""
FAR = 1.5
"""Growth of the weights after which a loss that is still that of a constant prediction is no first plateau."""
ABOVE = 1.3
"""A loss that stays this far above its start (and above half of the constant prediction's; where that is not known, above
1.95 times its start) is collapsed: 28 fitted runs, of which two recovered."""
AT_EDGE = (0.9, 1.2)
"""Quartiles of r/e of a run that sits at the edge of stability: full-batch ones hover at 1.0 to 1.1; of the fitted runs, all
in batches, three do."""
PLATEAU = 0.97
"""A loss within 0.97 of the constant prediction's that kept 0.97 of itself sits on a plateau: then a raised rate is raised
by no more than LEAST."""
TARGET, POWER = 2.0, 2.0
"""Rates to try where one is too low: lr (TARGET low / level)^POWER. Curvature gives way as the rate rises, so that r is not
proportional to it: of the fitted runs called too low 47 % come within a step of the grid (3.2) of its best rate, 2 % go further
past it, and 30 % are still ten times below: one reads again there.
"""
LEAST, FACTORS = 2.0, (2.0, 3.0, 5.0, 10.0)
"""Factors that are advised, the smallest where least is known: readings do not extrapolate further than tenfold, nor finer."""
CUT, CUT_LOST = 1 / 3, 1 / 10
"""Factors where the rate is too high: the median of the fitted runs, and of those whose loss ceased to be finite."""
ALL_SILENT = 0.9
"""Share of silent units from which nothing is left to move, however many were silent at the start."""
VANISHED = 1e-3
"""A gradient this small against its own past, at a loss that has not fallen, has vanished."""
STILL = 1e-7
"""An update below float32's resolution of the weights moves nothing."""


def lost(evidence: Evidence) -> str:
    """Why the run is lost: its loss or gradient is no number any more; "" where it is not."""
    if not evidence.readings:
        return ""
    last = evidence.readings[-1]
    unread = math.isnan(last.loss) and math.isnan(last.r)
    gone = unread and (
        "not finite" in last.reason or (not last.reason and bool(evidence.losses))
    )  # else: a failed reading
    if math.isinf(last.loss) or gone or math.isinf(last.grad_norm):
        at = f" at step {last.step}" if last.step >= 0 else ""
        return f"the loss was no finite number{at}"
    return ""


def collapsed(evidence: Evidence) -> str:
    """Why the run has collapsed, by its loss: "" where it has not, or where too few losses were seen."""
    if gone := lost(evidence):
        return gone
    late, start, baseline = evidence.late_loss, evidence.start, evidence.baseline
    if len(evidence.losses) < ENOUGH:
        return ""
    seen = not math.isnan(baseline)
    constant = baseline if seen else start
    if not constant > 0:  # a likelihood or a reward: its zero means nothing
        return ""
    if late > ABOVE * (max(start, baseline / 2) if seen else 1.5 * start):
        return f"the loss ended at {number(late)}, above its start ({number(start)})"
    if late <= STUCK * constant:
        return ""
    before, after = evidence.silent()
    at = f"that of a constant prediction ({number(constant)})" if seen else f"near its start ({number(constant)})"
    stays = f"the loss stays at {number(late)}, {at},"
    if after - before > SILENCED:
        return f"{stays} with {after:.0%} of the units silent"
    if evidence.peak > SPIKE * start:
        return f"{stays} after a spike to {number(evidence.peak)}"
    if late > BACK * evidence.best_loss:
        return f"{stays} though it had been down to {number(evidence.best_loss)}"
    return ""


def stuck(evidence: Evidence) -> str:
    """Why a loss that is still that of a constant prediction is no sign of safe steps: "" where it is not, or may just begin.

    A rate that was too high, or weights that went far, have left it there; at a small rate it may be the first plateau.
    """
    late, baseline = evidence.late_loss, evidence.baseline
    if len(evidence.losses) < ENOUGH or not late > STUCK * baseline > 0 or evidence.readings[-1].r >= 1:
        return ""
    stays = f"the loss stays at {number(late)}, that of a constant prediction ({number(baseline)}),"
    if why := strained(evidence):
        return f"{stays} and {why}"
    if evidence.edge is not None and evidence.level > HIGH:
        return f"{stays} after steps with r/e at {number(evidence.r / evidence.edge)}"
    if evidence.way > FAR:
        return f"{stays} though the weights grew to {number(evidence.way)} times their length"
    return ""


def dying(evidence: Evidence) -> str:
    """Why the units say that the rate is too high: most fell silent; "" where they did not."""
    before, after = evidence.silent()
    if after - before < DEAD or len(evidence.readings) < ENOUGH or math.isnan(after - before):
        return ""
    return f"the share of silent units rose from {before:.0%} to {after:.0%}"


def on_plateau(evidence: Evidence) -> bool:
    """Whether the loss has not left that of a constant prediction."""
    first, last = evidence.thirds()
    return last > PLATEAU * evidence.baseline > 0 and last > PLATEAU * first


def low(evidence: Evidence) -> float:
    """Lower threshold on `Evidence.level`."""
    left = max(_known(evidence.left), SMALLEST_LEFT)
    trend = min(max(_known(evidence.gradient_trend), TRENDS[0]), TRENDS[1])
    batch = (evidence.last.probe or TYPICAL_BATCH) / TYPICAL_BATCH
    return min(LOW / left * batch**LOW_BATCH * trend**LOW_GRADIENT, MOST)


def band(evidence: Evidence) -> tuple[float, float]:
    """The band of good rates in units of r/e: (low, high). For a rule whose edge is known."""
    unit = evidence.unit / (evidence.edge or math.nan)
    return low(evidence) * unit, HIGH * unit


def strained(evidence: Evidence) -> str:
    """How the weights grew, where it was as only rates do that are too high; "" where it was not."""
    growth = _known(evidence.growth)
    strain = growth * math.sqrt(_known(evidence.spike))
    if not strain * (NORMALIZED if evidence.last.normalized else 1.0) > STRAIN:
        return ""
    rose = f"the loss rose to {number(evidence.spike)} times its start" if evidence.spike > SPIKE else ""
    if math.isnan(evidence.growth):
        return rose
    over = f" in {evidence.growing_steps} steps" if evidence.growing_steps > 0 else ""
    return f"the weights grew to {number(growth)} times their length{over}{rose and ', and ' + rose}"


def _known(value: float) -> float:
    """What is not known counts as unchanged."""
    return 1.0 if math.isnan(value) else value


def solved(evidence: Evidence) -> bool:
    """Whether the loss is all but gone."""
    return 0 <= evidence.thirds()[1] < SOLVED * evidence.start


def at_edge(evidence: Evidence) -> bool:
    """Whether r stays at the edge of stability."""
    if len(evidence.steady) < ENOUGH:
        return False
    first, third = evidence.quartiles_over_edge()
    return AT_EDGE[0] <= first and third <= AT_EDGE[1]


def raised(evidence: Evidence) -> float:
    """By what to multiply a rate that is too low."""
    if on_plateau(evidence):
        return LEAST
    wanted = (TARGET * low(evidence) / max(evidence.level, 1e-9)) ** POWER
    return max((factor for factor in FACTORS if factor <= wanted), default=LEAST)


def stalled(readings: Sequence[SpectralReading]) -> str:
    """Why nothing moves any more, so that a low r is no sign of safe steps and no eta* is to be read off; "" where it does.

    Looks at the latest readings against all before: a loss that is no number, has collapsed or is stuck, units most of which
    are silent, a gradient that vanished against its own past while the loss has not fallen, an update below the weights'
    resolution.
    """
    evidence = gather(readings)
    if reason := collapsed(evidence) or dying(evidence) or stuck(evidence):
        return reason
    last = latest(evidence.readings)
    silent, update = median(r.silent for r in last), median(r.update_ratio for r in last)
    if silent >= ALL_SILENT:
        return f"{silent:.0%} of the units are silent"
    if update < STILL and any(lr > 0 for r in last for lr in r.lr):
        return f"a step moves the weights by {number(update)} of their length, below what float32 resolves"
    gradient, past = (
        median(r.grad_norm for r in last),
        max((r.grad_norm for r in readings if r.grad_norm > 0), default=0),
    )
    loss = evidence.late_loss
    if past > 0 and gradient < VANISHED * past and loss > STUCK * evidence.start:
        return (
            f"the gradient is down to {number(gradient / past)} of what it was while the loss stays at {number(loss)}"
        )
    return ""
