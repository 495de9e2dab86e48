"""What a suggestion says of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from topoopt.suggestion.result import RateReading, Trial

NOT_FINITE = (
    "The loss is not finite before any step was taken: look for the cause in the batches, the model or the loss. The rates "
    "are yours, unchanged."
)
WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}


def found(trials: Sequence[Trial], readings: Sequence[RateReading], before: float, length: int) -> str:
    """Which short run ended lowest, and what r/e was in it."""
    number = min(range(len(trials)), key=lambda i: trials[i].loss)
    best = trials[number]
    others = ", ".join(f"{_loss(t)} at {t.lr:.3g}" for t in sorted(trials, key=lambda t: t.lr) if t is not best)
    ratios = sorted(one.r / one.edge for one in readings if one.trial == number + 1 and math.isfinite(one.r))
    seen = f"; r/e in it was {' to '.join(f'{ratio:.2g}' for ratio in ratios)}" if ratios else ""
    count = WORDS.get(len(trials), str(len(trials)))
    return (
        f"{count} short runs of {length} steps, whose rates fell to 0 in the end: the one from {best.lr:.3g} ended lowest, "
        f"at {_loss(best)} from {before:.3g} ({others}){seen}."
    )


def nothing_moved(trials: Sequence[Trial], before: float, length: int) -> str:
    """Why no rate can be told from what the short runs did."""
    losses = ", ".join(f"{_loss(t)} at {t.lr:.3g}" for t in sorted(trials, key=lambda t: t.lr))
    if not any(math.isfinite(trial.loss) for trial in trials):
        what, advice = "every one was lost", "look for batches whose loss is not finite"
    else:
        what = "no two rates lowered it, so that nothing tells a good rate from a bad one"
        advice = (
            "a network on a plateau needs longer before it begins to learn: give more steps, or ask again after some "
            "training at a small rate"
        )
    return (
        f"From a loss of {before:.3g}, short runs of {length} steps ended at {losses}: {what}; {advice}. The rates are "
        "yours, unchanged."
    )


def still_gaining(trials: Sequence[Trial], before: float, length: int) -> str:
    """Why the highest rate that was tried is no suggestion."""
    best = max(trials, key=lambda trial: trial.lr)
    return (
        f"Short runs of {length} steps ended lowest at the highest rate that was tried, {best.lr:.3g} ({_loss(best)} from "
        f"{before:.3g}), where r is far below the edge: the approach was lost too early, or has not come far enough; look "
        "for batches of unusual loss, or give more steps. The rates are yours, unchanged."
    )


def notes(trials: Sequence[Trial], rule: str, edge: float, given: int, wanted: int) -> list[str]:
    """What is to be said beside: where the search ended, what is not known of the rule, too few batches."""
    order = sorted(trials, key=lambda trial: trial.lr)
    best = min(order, key=lambda trial: trial.loss)
    said = []
    if best is order[0] or best is order[-1]:
        side = "lowest" if best is order[0] else "highest"
        said.append(f"It was the {side} rate that was tried: the best may lie beyond it.")
    if rule == "black box":
        said.append(f"The update rule is not recognised: its edge is taken for {edge:g}, gradient descent's.")
    if given < wanted:
        said.append(f"There were {given} batches, gone round for {wanted}.")
    return said


def _loss(trial: Trial) -> str:
    return f"{trial.loss:.3g}" if math.isfinite(trial.loss) else "lost"
