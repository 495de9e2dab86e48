"""`topoopt.suggest`: the learning rate to use, before the real run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.curvature import recognise
from topoopt.errors import ConfigError, SteeringError
from topoopt.suggestion import wording
from topoopt.suggestion.approach import DESCENT, MOVED, approach, momentum_of
from topoopt.suggestion.checks import FOLLOW, bare, check_arguments, check_pair, peaks_of
from topoopt.suggestion.copying import undisturbed
from topoopt.suggestion.loss import LossFn
from topoopt.suggestion.rehearsal import Rehearsal, Script
from topoopt.suggestion.result import RateReading, Suggestion, Trial
from topoopt.suggestion.trials import lowest, search

STEPS = 160
SHARE = 0.3
"""Share of the steps that the approach takes."""
TRIALS = 3
"""The rest of the steps is divided by this for the length of a trial. What a lost approach leaves over is tried too."""
HELD = 2 / 3
"""Share of a trial at its full rate, before the rate falls to 0. A rate that falls from the start hides what is lost by
staying near it, as a long run does: networks die in it at rates at which such short runs end lowest."""
SHIFT = 0.9
"""What the rate at which trials end lowest is multiplied by: the run that it is for is longer. Fitted, like `HELD` and
`WIDTH`, on the tasks that `benchmarks/rates.py` marks so."""
WIDTH = 2.5
"""The bracket reaches from the suggestion by this factor down and up."""
FAR_BELOW = 0.02
"""r/e below which the best of the trials, if it is the highest rate, is no suggestion: good ones are ten times as high."""
SMALL = 0.01
"""Share of the first loss from which on losses are compared by their differences, not by their ratios."""


def suggest(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss_fn: LossFn | None = None,
    *,
    steps: int = STEPS,
    max_norm: float | None = None,
) -> Suggestion:
    """Find the learning rate to use, in a few steps of copies of the model and the optimizer.

    First a run from a tiny rate, in which a warm reading of r every third step (2 products, on the step's own batch) brings
    r/e to where good rates lie. Then, around the rate where that ended, three short runs from the given weights, whose rate
    is held and falls to 0 in the last third: the suggestion is where their final losses are lowest, a little down. So r says
    where to look, and the loss which of the rates there to take.

    The model, the optimizer with its state, buffers, `.grad` and hooks are not touched. Random generators (torch's, of the
    model's devices too, numpy's and Python's) are at the end where they were at the beginning, the draws of iterating
    `batches` included; meanwhile the default generators are used, and seeded by the readings, which another thread that
    draws from them would notice.

    Args:
        model: as it will be trained. A copy is put into training mode if the model is in evaluation mode.
        optimizer: as it will be used: momentum, weight decay and state enter as they are, and the ratios of the groups'
            rates are kept. Its rates (their peaks, where a scheduler has left them) only set the ratios. Warm-up is
            not rehearsed: short runs begin at their full rate.
        batches: what each optimizer step takes, on the model's device. At most 0.3 `steps` of them (48) are taken from it,
            and not put back; fewer are gone round. They are kept in memory until the end.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss, or an object with `.loss`. None: the model is called
            with the batch (a mapping by name, a tuple by position) and its output has `.loss`, as Hugging Face's have.
        steps: optimizer steps in all, at least 60. More make the short runs longer, which a network that needs some time
            before it begins to learn may need.
        max_norm: the norm that the training will clip gradients to (Trainer's default is 1.0), or None.

    Returns:
        The suggestion; `known` is False, with the reason, where nothing was learnt that a rate could be told by.
        Time: about twice that of `steps` training steps. Memory: one more model with gradients and optimizer state,
        and the graph of a double backward.

    Raises:
        ConfigError: for arguments that cannot work, and for DDP, FSDP, DeepSpeed and sharded weights: ask in one process.
        SteeringError: for a rule whose step does not follow its rate (Prodigy, line searches, ...).
        NotDefinedError: for a rule that moves by signs, or whose step needs a closure.
        MeasurementError: when the model or the optimizer cannot be copied, or r cannot be read.

    Source: r/e as the unit of learning rates: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670 (r) and Cohen et al. 2022 (e),
    measured; how often the suggestion is right: `benchmarks/rates.py`.
    """
    check_arguments(model, optimizer, steps, max_norm)
    optimizer = bare(optimizer)
    model = getattr(model, "_orig_mod", model)  # a compiled model's own: a copy would be compiled anew
    check_pair(model, optimizer)
    script = Script(model, optimizer, peaks_of(optimizer), loss_fn, max_norm)
    with undisturbed(model):
        kept = list(itertools.islice(batches, round(SHARE * steps)))
        if not kept:
            raise ConfigError("batches has none: give what the training steps take, some fifty of them")
        return _Finder(script, kept, steps).find()


class _Finder:
    """One search: what it runs, and what was seen so far."""

    def __init__(self, script: Script, kept: list[Any], steps: int) -> None:
        self._script, self._given, self._steps = script, len(kept), steps
        self._reference = next(peak for peak in script.rates if peak > 0)
        way = round(SHARE * steps)
        self._length = (steps - way) // TRIALS
        around = list(itertools.islice(itertools.cycle(kept), max(way, self._length)))
        self._way, self._batches = around[:way], around[: self._length]
        self._judged = self._batches[-(self._length // 3) :]
        self._readings: list[RateReading] = []
        self._trials: list[Trial] = []
        self._taken, self._before = 0, math.nan

    def find(self) -> Suggestion:
        """Approach, try, choose."""
        self._before = before = Rehearsal(self._script).loss(self._judged)
        if not math.isfinite(before):
            return self._unknown(wording.NOT_FINITE)
        start = self._approach()
        count = max(TRIALS, (self._steps - self._taken) // self._length)
        tried = search(self._try, math.log(start), count, self._score(before))
        moved = [trial for trial in self._trials if trial.loss < before - MOVED * abs(before)]
        if len(moved) < 2:  # a single one, beside a plateau, may be on its way to being lost
            return self._unknown(wording.nothing_moved(self._trials, before, self._length))
        if self._is_far_below(max(self._trials, key=lambda trial: trial.lr)):
            return self._unknown(wording.still_gaining(self._trials, before, self._length))
        return self._known(SHIFT * math.exp(lowest(tried)), before)

    def _is_far_below(self, highest: Trial) -> bool:
        """Whether the highest rate that was tried is the best, and r/e in it says that much larger ones are as good."""
        number = self._trials.index(highest) + 1
        ratios = [one.r / one.edge for one in self._readings if one.trial == number and one.r > 0]
        return highest is min(self._trials, key=lambda trial: trial.loss) and max(ratios, default=1.0) < FAR_BELOW

    def _approach(self) -> float:
        """The rate at which r is at its target, or as near as the steps allow."""
        rehearsal, groups = Rehearsal(self._script), self._script.optimizer.param_groups
        rate, self._readings = approach(rehearsal, self._way, self._reference, momentum_of(groups))
        self._taken += rehearsal.steps
        rule = recognise(self._script.optimizer)[0]
        if not rule.startswith(FOLLOW) and not rehearsal.follows_its_rate():
            name = type(self._script.optimizer).__name__
            raise SteeringError(f"no rate is suggested for {name}: tried out, twice its rate does not double its step")
        return rate

    def _try(self, log_rate: float) -> float:
        """`_score` of how a short run from the given weights ends, whose rate is held and then falls to 0."""
        rate, rehearsal = math.exp(log_rate), Rehearsal(self._script)
        for step, batch in enumerate(self._batches):
            lr = rate * min(1.0, (1 - step / self._length) / (1 - HELD))
            rehearsal.at(lr / self._reference)
            loss = rehearsal.backward(batch)
            if not math.isfinite(loss):
                break
            if step in (self._length // 4, self._length // 2):
                seen = rehearsal.read(batch)
                self._readings.append(
                    RateReading(
                        self._taken + step,
                        lr,
                        seen.r,
                        DESCENT if seen.edge is None else seen.edge,
                        loss,
                        len(self._trials) + 1,
                    )
                )
            rehearsal.step()
        self._taken += rehearsal.steps
        ended = rehearsal.loss(self._judged) if rehearsal.steps == self._length else math.inf
        self._trials.append(Trial(rate, ended))
        return self._score(ended)

    def _score(self, loss: float) -> float:
        """A loss on a logarithmic scale, down to a hundredth of the first; losses may be negative."""
        return math.asinh(loss / max(SMALL * abs(self._before), 1e-12))

    def _known(self, rate: float, before: float) -> Suggestion:
        factor = rate / self._reference
        said = wording.found(self._trials, self._readings, before, self._length)
        rule, edge = recognise(self._script.optimizer)
        notes = wording.notes(self._trials, rule, DESCENT if edge is None else edge, self._given, len(self._way))
        return self._answer(factor, (rate / WIDTH, rate * WIDTH), True, " ".join([said, *notes]))

    def _unknown(self, reason: str) -> Suggestion:
        return self._answer(1.0, (0.0, math.inf), False, reason)

    def _answer(self, factor: float, bracket: tuple[float, float], known: bool, reason: str) -> Suggestion:
        return Suggestion(
            lr=tuple(factor * rate for rate in self._script.rates),
            factor=(factor,) * len(self._script.rates),
            bracket=bracket,
            known=known,
            reason=reason,
            readings=tuple(self._readings),
            trials=tuple(self._trials),
            steps=self._taken,
        )
