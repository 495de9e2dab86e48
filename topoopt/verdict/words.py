"""The three sentences of a verdict: what happened, what to try, what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from topoopt.measurement import GroupMeasurement, SpectralReading
from topoopt.verdict import rule
from topoopt.verdict.evidence import FITTED_STEPS, Evidence, median, rate
from topoopt.verdict.numbers import number

Groups = Mapping[str, GroupMeasurement]
FITTED = {"sgd", "sgd momentum", "sgd nesterov momentum", "adam", "adamw", "nadam", "rmsprop"}
"""Update rules of the runs that the thresholds were fitted on."""
RELIABILITY = (
    "whether this run is one of those that the rule misjudges, one or two in ten on tasks it was not fitted on"
)
"""Measured by `benchmarks/verdict.py`: 19 % of the runs of 16 tasks that nothing was chosen on; 13 and 17 % on sets before."""


# -- what happened ----------------------------------------------------------------------------------------------------


def happened(state: str, why: str, evidence: Evidence, groups: Groups) -> str:
    """What happened, with the evidence."""
    if not evidence.readings:
        return "Nothing was read: the run has no reading of r."
    if state == "lower bound only":
        return _lower_bound(why, evidence, groups)
    if state == "not enough readings":
        return _too_few(evidence)
    if why:
        return f"{why[0].upper()}{why[1:]}{_most_silent(groups)}; {_r_of(evidence)}."
    return f"{_capital(_r_of(evidence))}{_against(state, evidence)}{_loss_of(evidence)}."


def _lower_bound(why: str, evidence: Evidence, groups: Groups) -> str:
    if evidence.window:
        past = "; past 1 the guarantee is lost" if evidence.r >= 1 else ""
        return (
            f"{_capital(_r_of(evidence))}{_loss_of(evidence)}; the edge of this update rule is not known, so r tells neither "
            f"too low nor right{past}."
        )
    gain = max((group.gain for group in groups.values() if not math.isnan(group.gain)), default=math.nan)
    bound = "" if math.isnan(gain) else f"; r is at least r_pair = {number(gain)}, from pairs of neurons"
    reason = f": {why.rstrip('.')}" if why else ""
    return f"r could not be read in any of {_readings(len(evidence.readings))}{reason}{bound}."


def _too_few(evidence: Evidence) -> str:
    warming = sum(bool(reading.warming) for reading in evidence.readings)
    aside = f", {warming} of them while the optimizer's averages were warming up" if warming else ""
    return (
        f"Of {_readings(len(evidence.readings))}{aside}, {len(evidence.window)} tell of the run at its full rate; "
        f"a verdict takes {rule.ENOUGH}."
    )


def _r_of(evidence: Evidence) -> str:
    """r/e (or r) with what it is a median of."""
    known = [reading for reading in evidence.window if not math.isnan(reading.r)]
    if not known:
        return "r was not read at the full rate"
    steps = f", steps {known[0].step} to {known[-1].step}" if known[0].step >= 0 else ""
    of = f"(median of {_readings(len(known))}{steps})"
    if evidence.edge is None:
        return f"r was {number(evidence.r)} {of}"
    return f"r/e was {number(evidence.r / evidence.edge)} {of}"


def _against(state: str, evidence: Evidence) -> str:
    """The band of good rates, in units of r/e."""
    if evidence.edge is None:
        return ""
    low, high = rule.band(evidence)
    if state == "right" and evidence.level < rule.low(evidence):
        return ", low because the loss is all but gone and its curvature with it"
    place = {"too low": "below", "too high": "above", "right": "within"}.get(state)
    if place is None:
        return ", at the edge of stability all along"
    return f", {place} the band of good rates ({number(low)} to {number(high)})"


def _loss_of(evidence: Evidence) -> str:
    first, last = evidence.thirds()
    if math.isnan(first) or math.isnan(last):
        return ""
    if number(first) == number(last):
        return f", while the loss stayed at {number(last)}"
    return f", while the loss {'fell' if last < first else 'rose'} from {number(first)} to {number(last)}"


def _most_silent(groups: Groups) -> str:
    shares = {name: group.silent / group.n for name, group in groups.items() if group.n > 0 and group.silent > 0}
    if not shares:
        return ""
    name = max(shares, key=lambda name: shares[name])
    return f" (most in {name}: {groups[name].silent} of {groups[name].n})"


def _readings(count: int) -> str:
    return f"{count} reading{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    """Sentences begin with a capital, but r is a symbol."""
    return text if text.startswith("r") else text[:1].upper() + text[1:]


# -- what to try ------------------------------------------------------------------------------------------------------


def advice(state: str, why: str, evidence: Evidence) -> str:
    """What to try, with a number where there is one."""
    if state == "too low":
        return f"{_try(rule.raised(evidence), evidence)} Read again there: curvature gives way as the rate rises."
    if state == "right":
        return f"Keep the rate{_named(1.0, evidence)}."
    if state == "too high" and not why:
        steps = _calm_from(evidence)
        other = f" Or warm up over {steps} steps: after these r was in the band." if steps else ""
        return _try(rule.CUT, evidence) + other
    if state in ("too high", "collapsed"):
        cut = rule.CUT_LOST if rule.lost(evidence) else rule.CUT
        return f"Start again: {_lowered(_try(cut, evidence))} What has gone this far does not recover by itself."
    if state == "at the edge":
        below = 0.9 / evidence.r
        return (
            "Keep the rate where speed is what counts: a larger one is answered by less curvature. To keep the neurons apart "
            f'(r under 1) use mode="preserve", or {_rate_times(below, evidence)}.'
        )
    return _to_read(state, evidence)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _to_read(state: str, evidence: Evidence) -> str:
    """What it takes to say more."""
    if state == "lower bound only" and evidence.window:
        third, triple = (_rate_times(factor, evidence) for factor in (1 / 3, 3.0))
        return f"Compare its loss with those of {third} and {triple}."
    if state == "lower bound only":
        return 'Give the loss (loss=...) and leave estimator at "auto", so that r can be read.'
    missing = rule.ENOUGH - len(evidence.window)
    more = f"{missing} more reading{'s' if missing > 1 else ''} at the full rate"
    return f"Train on, or spend more on it (budget=None, every=25 reads each fifth step): {more}."


def _try(factor: float, evidence: Evidence) -> str:
    if factor >= 1:
        return f"Try a rate {number(factor)} times larger{_named(factor, evidence)}."
    return f"Try a rate {number(1 / factor)} times smaller{_named(factor, evidence)}."


def _named(factor: float, evidence: Evidence) -> str:
    """The rates themselves, of at most three groups."""
    rates = _rates(evidence)
    if not rates:
        return ""
    shown = ", ".join(number(lr * factor) for lr in rates[:3])
    return f": {shown}" + (", ..." if len(rates) > 3 else "")


def _rate_times(factor: float, evidence: Evidence) -> str:
    rates = _rates(evidence)
    return f"a rate of {number(rates[0] * factor)}" if rates else f"{number(factor)} times the rate"


def _rates(evidence: Evidence) -> list[float]:
    """The groups' rates as they were at the full rate, factor included; each once."""
    readings = evidence.window or evidence.readings
    full = max(readings, key=lambda reading: rate(reading) if rate(reading) > 0 else 0.0, default=None)
    return [] if full is None else list(dict.fromkeys(lr * full.scale for lr in full.lr if lr > 0))


def _calm_from(evidence: Evidence) -> int:
    """Steps after which r was in the band to the end of the window; 0 where it never was."""
    high = rule.HIGH * evidence.unit
    half = len(evidence.window) // 2
    if evidence.edge is None or median(reading.r for reading in evidence.window[half:]) > high:
        return 0
    calm: SpectralReading = evidence.window[half]
    return max(calm.step - evidence.readings[0].step, 0)


# -- what is not known ------------------------------------------------------------------------------------------------


def unknown(state: str, evidence: Evidence) -> str:
    """What is not known, the most important first."""
    said = [_first_unknown(state, evidence)] + ([RELIABILITY] if state in ("too low", "right", "too high") else [])
    if evidence.readings:
        last = evidence.last
        if any(reading.scale != 1.0 for reading in evidence.readings):
            said.append(f"the rate was steered: this is of the user's rate times the factor ({number(last.scale)})")
        if evidence.window and rule.on_plateau(evidence) and state in ("too low", "right"):
            said.append("what comes after the plateau: the loss is still that of a constant prediction")
        if evidence.readings[0].step > FITTED_STEPS:
            said.append(f"the readings begin at step {evidence.readings[0].step}, the rule was fitted on first steps")
        if evidence.window and last.rule not in FITTED:
            said.append(f'the thresholds were not fitted on "{last.rule or "this rule"}"')
        if math.isnan(evidence.baseline) and state in ("too low", "right", "too high"):
            said.append("no labels were seen, so not whether the loss beats a constant prediction")
    return f"Not known: {'; '.join(said)}."


def _first_unknown(state: str, evidence: Evidence) -> str:
    bare = "where r stands to the edge" if evidence.window else "r itself"
    return {
        "too low": "how much a larger rate gains, as r is not proportional to it",
        "right": "whether another rate in the band does better (r tells a factor of 2), and how the model generalises",
        "too high": "whether the run would still recover under its schedule",
        "at the edge": "which rate ends best: at the edge r reads the same over a range of rates",
        "collapsed": "the critical rate: where nothing moves r is low at any rate",
        "not enough readings": "where the rate stands",
        "lower bound only": f"{bare}, and so whether the rate is too low or right",
    }[state]
