"""Which cuts are made: planned group by group, tried together, by halves where they fail together."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn

from topoopt.errors import DiscoveryError
from topoopt.neurons.compacting.attributes import WAYS, settings
from topoopt.neurons.compacting.constants import constants
from topoopt.neurons.compacting.cutting import Cut, Original
from topoopt.neurons.compacting.planning import Constants, has_sides, plan, steady_by_weights
from topoopt.neurons.compacting.rehearsal import Rehearsal
from topoopt.neurons.compacting.result import Plan
from topoopt.neurons.compacting.trial import Inputs, RandomTrial, Trial
from topoopt.neurons.group import NeuronGroup

PASSES = 3
"""What has gone can leave others without a reader, or equal: looked at again this many times at most."""
EXACT = 1e-6
"""Tolerance of the second attempt at a group whose cut at the user's tolerance changed the function: rounding."""
STRUCTURE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest change that merging planted equals causes on random weights where it is right."""
DRAWS = 4
"""Random weights that it must be right on: a function of ranks (the k largest) moves only where the equals stand at the k-th."""
ALIGNED = 8
"""Units that are left are a multiple of this where a kernel does not take the number that would be."""
NARROW = 1e-4
"""The least change that can be told in float32."""
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Limits:
    """What the caller allows."""

    tolerance: float
    change: float
    silent: bool


class Bench:
    """The work on one model: plans, trials and what came of them."""

    Limits = Limits

    def __init__(self, model: nn.Module, groups: Sequence[NeuronGroup], runs: Sequence[Inputs], limits: Limits) -> None:
        self._runs, self._limits = runs, limits
        self._call = next((group.example.call for group in groups if group.example is not None), None)
        self.of = Original(model)
        self.cut = Cut()
        self.plans: dict[str, list[Plan]] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.change = 0.0
        self._families: dict[str, list[NeuronGroup]] = {}
        self._ways: dict[str, int] = {}
        for group in groups:
            why = has_sides(model, group)
            if why or group.n < 2:
                self.reasons[group.name] = why
            else:
                self._families.setdefault(_family(model, group), []).append(group)

    def waiting(self) -> list[NeuronGroup]:
        """Groups that nothing has been said of yet."""
        everyone = (group for family in self._families.values() for group in family)
        return [group for group in everyone if group.name not in self.reasons and group.name not in self.plans]

    def shrunk(self) -> list[tuple[NeuronGroup, int]]:
        """Groups that lost units, and how many they have left."""
        everyone = (group for family in self._families.values() for group in family)
        return [(group, len(self.cut.alive(self.of, group))) for group in everyone if group.name in self.plans]

    def choose(self) -> None:
        """Find the largest set of cuts that leaves the function as it is.

        Raises:
            DiscoveryError: when the model cannot be copied or run.
        """
        candidates = self._candidates()
        if not any(candidates.values()):
            return
        trial, limit = self._open(Trial, self._limits.change, NARROW)
        steady = self._steady(trial)
        for _ in range(PASSES):
            open_ones = [family for family in self._families if not self._said(family)]
            planned = self._planned(open_ones, self._limits.tolerance, steady)
            if not planned:
                break
            self._learn_ways(planned)
            planned = {family: plans for family, plans in planned.items() if family in self._ways}
            again = self._take(trial, planned, limit)
            exact = self._planned(again, min(EXACT, self._limits.tolerance), {})
            self._take(trial, {f: plans for f, plans in exact.items() if plans != planned[f]}, limit)
        self.cut = trial.with_widths(self.cut)

    def _candidates(self) -> dict[str, bool]:
        """Family -> whether anything in it might go."""
        found = {}
        for family, groups in self._families.items():
            found[family] = self._limits.silent
            for group in list(groups):
                try:
                    some = plan(self.of, self.cut, group, self._limits.tolerance).gone
                    some = some or steady_by_weights(self.of, group, self._limits.tolerance)
                except Exception as error:  # sharded, quantised or otherwise not plain tensors
                    self.reasons[group.name] = f"its weights cannot be compared ({_first_line(error)})"
                    groups.remove(group)
                    continue
                found[family] |= bool(some)
        return found

    def _open(self, kind: type[Trial], wide: float, narrow: float) -> tuple[Trial, float]:
        """A trial in float64, or in float32 where the model cannot be run in that, and the change that counts there."""
        try:
            return kind(self.of.model, self._runs, self._call), wide
        except DiscoveryError as error:
            trial = kind(self.of.model, self._runs, self._call, torch.float32)
            self.notes.append(f"compared in float32, to {max(wide, narrow):g}: {error}")
            return trial, max(wide, narrow)

    def _steady(self, trial: Trial) -> dict[str, Constants]:
        wanted = {}
        for groups in self._families.values():
            for group in groups:
                units = (
                    range(group.n) if self._limits.silent else steady_by_weights(self.of, group, self._limits.tolerance)
                )
                wanted[group.name] = (group, list(units))
        return constants(trial, wanted) if any(units for _, units in wanted.values()) else {}

    def _planned(
        self, families: Iterable[str], tolerance: float, steady: Mapping[str, Constants]
    ) -> dict[str, dict[str, Plan]]:
        """Family -> group -> plan, for families that lose units; each group of a family as many."""
        found = {}
        for family in families:
            groups = self._families[family]
            plans = {g.name: plan(self.of, self.cut, g, tolerance, steady.get(g.name)) for g in groups}
            left = {g.name: len(self.cut.alive(self.of, g)) for g in groups}
            keep = max(left[name] - len(p.gone) for name, p in plans.items()) if plans else 0
            lagging = [name for name, p in plans.items() if not p.gone]
            plans = {name: p.at_most(max(0, left[name] - keep)) for name, p in plans.items()}
            if plans and all(p.gone for p in plans.values()):
                found[family] = plans
            elif 0 < len(lagging) < len(groups):
                why = f"{lagging[0]} has none to spare, and their module or configuration knows one width"
                self.reasons.update({g.name: why for g in groups if g.name not in self.plans and g.name not in lagging})
        return found

    def _learn_ways(self, planned: Mapping[str, object]) -> None:
        """Try on random weights which families can be cut at all, and how their modules' numbers are set then."""
        new = [family for family in planned if family not in self._ways and not self._said(family)]
        if not new:
            return
        trial, limit = self._open(RandomTrial, *STRUCTURE.values())
        assert isinstance(trial, RandomTrial)
        self._plant(trial, new)
        planted = {g.name: Plan({g.n - 1: 0}) for family in new for g in self._families[family]}

        def attempt(chosen: Sequence[tuple[str, int]]) -> str:
            return _tried(trial, self._with(Cut(), trial.of, {f: planted for f, _ in chosen}, dict(chosen)), limit)[0]

        good, bad = sift([(family, 0) for family in new], attempt)
        self._ways.update(good)
        for (family, _), why in bad.items():
            done, _ = sift([(family, way) for way in range(1, WAYS)], lambda chosen: attempt([*good, *chosen[:1]]))
            self._ways.update(done[:1])
            if not done:
                self._cannot(family, why)
        for seed in range(1, DRAWS):
            able = [(family, self._ways[family]) for family in new if family in self._ways]
            trial.redraw(seed)
            self._plant(trial, new)
            for (family, _), why in sift(able, attempt)[1].items():
                del self._ways[family]
                self._cannot(family, why)

    def _plant(self, trial: RandomTrial, families: Sequence[str]) -> None:
        for family in families:
            for group in self._families[family]:
                trial.plant(group)
        trial.settle()

    def _cannot(self, family: str, why: str) -> None:
        why = f"equal units of it cannot become one: {why}"
        self.reasons.update({group.name: why for group in self._families[family]})

    def _said(self, family: str) -> bool:
        return all(group.name in self.reasons for group in self._families[family])

    def _take(self, trial: Trial, planned: Mapping[str, Mapping[str, Plan]], limit: float) -> list[str]:
        """Cut what can be cut of these families; returns those whose cut changes the function."""
        plans = dict(planned)

        def build(chosen: Sequence[str]) -> Cut:
            return self._with(self.cut, self.of, {f: plans[f] for f in chosen}, self._ways)

        def rehearse(chosen: Sequence[str]) -> str:
            return self._rehearsal.why_not(build(chosen))

        same, bad = sift(list(plans), lambda chosen: _tried(trial, build(chosen), limit)[0])
        good, unable = sift(same, rehearse)
        for family, why in unable.items():
            plans[family] = self._aligned(family, plans[family])
            both = [*good, family]
            if plans[family] and not rehearse(both) and not _tried(trial, build(both), limit)[0]:
                good = both
            else:
                self.reasons.update(dict.fromkeys(planned[family], why))
        if good:
            cut = build(good)
            self.change = _tried(trial, cut, limit)[1]
            self.cut = cut
        for family in good:
            for name, one in plans[family].items():
                self.plans.setdefault(name, []).append(one)
        for family, why in bad.items():
            self.reasons.update(dict.fromkeys(planned[family], why))
        return list(bad)

    @cached_property
    def _rehearsal(self) -> Rehearsal:
        return Rehearsal(self.of.model, self._runs, self._call)

    def _aligned(self, family: str, plans: Mapping[str, Plan]) -> dict[str, Plan]:
        """The same with a number of units left that fused kernels take, or nothing where none can go then."""
        left = {g.name: len(self.cut.alive(self.of, g)) for g in self._families[family]}
        keep = max(-(-(left[name] - len(one.gone)) // ALIGNED) * ALIGNED for name, one in plans.items())
        if keep >= min(left.values()):
            return {}
        return {name: one.at_most(left[name] - keep) for name, one in plans.items()}

    def _with(self, cut: Cut, of: Original, planned: Mapping[str, Mapping[str, Plan]], ways: Mapping[str, int]) -> Cut:
        """A cut and these plans, with the numbers of all modules around what has gone."""
        for family, plans in planned.items():
            for group in self._families[family]:
                cut = cut.with_plan(of, group, plans[group.name])
        numbers = []
        for family, groups in self._families.items():
            once = {}
            for group in groups:
                left = len(cut.alive(of, group))
                if left < group.n and family in ways:
                    once |= {one.where: one for one in settings(of.model, group, left, ways[family])}
            numbers += once.values()
        return cut.with_settings(tuple(numbers))


def sift(items: Sequence[Item], attempt: Callable[[Sequence[Item]], str]) -> tuple[list[Item], dict[Item, str]]:
    """Items that can be had together, and for each other one the reason: all at once, by halves where that fails."""
    good: list[Item] = []
    bad: dict[Item, str] = {}
    queue = [list(items)]
    while queue:
        batch = queue.pop()
        why = attempt([*good, *batch]) if batch else ""
        if not why:
            good += batch
        elif len(batch) == 1:
            bad[batch[0]] = why
        else:
            queue += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
    return good, bad


def _tried(trial: Trial, cut: Cut, limit: float) -> tuple[str, float]:
    """Why a cut cannot be made, "" where it can; and how far it moved the output."""
    try:
        change = trial.change(cut)
    except Exception as error:  # a model that has its sizes written into its forward raises whatever it likes
        return f"the smaller model does not run ({_first_line(error)})", torch.inf
    return (f"the output changes by {change:.2g} (relative)" if not change <= limit else ""), change


def _family(model: nn.Module, group: NeuronGroup) -> str:
    """Groups of which one number says the width: layers of a recurrent module, alike layers of one configuration."""
    for owner in _owners(model, group):
        if isinstance(model.get_submodule(owner), nn.RNNBase) and group.kind == "recurrent":
            own = {
                f"{_unnumbered(s.tensor)}[{s.dim}]" for s in group.slices if s.tensor.startswith(f"{owner}.weight_h")
            }
            return " ".join(sorted(name.replace("_reverse", "") for name in own))
    return f"{_unnumbered(group.name)} {group.n}" if hasattr(getattr(model, "config", None), "to_dict") else group.name


def _owners(model: nn.Module, group: NeuronGroup) -> Iterator[str]:
    return iter(sorted({s.tensor.rpartition(".")[0] for s in group.slices}))


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
