"""What a suggestion says, and how it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from topoopt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RateReading:
    """One reading of r on the way, of the coming step."""

    step: int
    """Counted over all that was run."""
    lr: float
    """The rate it was read at, in the units of `Suggestion.bracket`."""
    r: float
    """r = eta / eta*; NaN where it could not be read."""
    edge: float
    """Edge of stability of the rule, in units of r."""
    loss: float
    """Of the step's batch."""
    trial: int = 0
    """0 on the approach, else the trial, counted from 1."""


@dataclass(frozen=True)
class Trial:
    """One short run from the weights as they were given, whose rate is held and then falls to 0."""

    lr: float
    """Its first rate, in the units of `Suggestion.bracket`."""
    loss: float
    """The mean loss of the last third of its batches at its end; infinite for a run that was lost."""


@dataclass(frozen=True)
class Suggestion:
    """A learning rate for a run that is yet to begin."""

    lr: tuple[float, ...]
    """The rate of each parameter group (the peak, under a schedule); the user's own where `known` is False."""
    factor: tuple[float, ...]
    """What each group's own rate is multiplied by; all alike, so that groups keep their ratios. 1 where `known` is False."""
    bracket: tuple[float, float]
    """(low, high), of the first group whose rate is not 0. It held the best rate of a grid in 33 of 39 runs that nothing was
    set on (`benchmarks/rates.py`). (0, inf) where `known` is False."""
    known: bool
    """Whether there is a suggestion; `reason` says why not."""
    reason: str
    """What it rests on, and what is to be said of it, in words."""
    readings: tuple[RateReading, ...] = field(default=(), repr=False)
    """r on the way, in the order of the steps."""
    trials: tuple[Trial, ...] = field(default=(), repr=False)
    """The short runs, in the order in which they were made."""
    steps: int = 0
    """Optimizer steps that were taken on copies."""

    def __str__(self) -> str:
        if not self.known:
            return f"learning rate: not known\n{self.reason}"
        rates = ", ".join(f"{lr:.3g}" for lr in self.lr)
        low, high = self.bracket
        factor = next(f for f in self.factor)
        return f"learning rate: {rates} ({factor:.3g} times yours), in [{low:.3g}, {high:.3g}]\n{self.reason}"

    def plot(self) -> Figure:
        """Loss and r/e against the rate, of the approach and of the trials.

        Raises:
            ConfigError: when matplotlib is missing, with how to install it.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError("plots need matplotlib: pip install 'topoopt[report]'") from error
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True)
        way = [one for one in self.readings if one.trial == 0]
        upper.plot([w.lr for w in way], [w.loss for w in way], ".-", color="#a8a8a8", label="batches of the approach")
        trials = [one for one in self.trials if math.isfinite(one.loss)]
        upper.plot(
            [t.lr for t in trials], [t.loss for t in trials], "o", color="#1d3557", label="short runs, at their end"
        )
        positive = all(one.loss > 0 for one in (*way, *trials))
        upper.set(ylabel="loss", xscale="log", yscale="log" if positive else "linear")
        for label, colour, chosen in (
            ("approach", "#a8a8a8", way),
            ("short runs", "#1d3557", [one for one in self.readings if one.trial]),
        ):
            known = [one for one in chosen if one.r > 0]
            style = ".-" if label == "approach" else "o"
            lower.plot([k.lr for k in known], [k.r / k.edge for k in known], style, color=colour, label=label)
        lower.axhline(1.0, color="#666666", linewidth=0.9, linestyle="--")
        lower.set(xlabel="learning rate", ylabel="r / e", xscale="log", yscale="log")
        for axes in (upper, lower):
            if self.known:
                axes.axvspan(*self.bracket, color="#2a9d8f", alpha=0.15, linewidth=0)
                axes.axvline(math.sqrt(self.bracket[0] * self.bracket[1]), color="#2a9d8f", linewidth=1.2)
            axes.legend(frameon=False, fontsize=8)
        return figure
