"""The rates of an update rule: read, scaled for one step without a trace, and whose step follows them."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from topoopt.device import HostNumbers, reading_is_free
from topoopt.errors import SteeringError

_MARK = "_topoopt_rates"


@dataclass
class _Scaled:
    """One scaled rate: where it stands, what the user had there, and what we put there."""

    group: dict[str, Any]
    user: float | torch.Tensor
    ours: float | torch.Tensor
    version: int
    number: float | None = None
    """The user's, where it was known."""


class RateScaler:
    """Multiplies each parameter group's current `lr` and restores it exactly.

    The *current* value is multiplied, so any scheduler composes with it; the user's value is put back only where nobody
    wrote another one during the step. A tensor `lr` is changed in place (compiled and capturable optimizers hold on to
    it), once even when several groups share it.

    What is in force is remembered on `optimizer`, where one is given: a step that raised, by whatever it was, leaves the
    user's rate to be found by whoever comes next: `restore`, the next `apply`, or another scaler for this optimizer,
    which begins by putting back what it finds. The mark is no part of a state dict, a pickle or a copy.
    """

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        self._scaled: list[_Scaled] = [] if optimizer is None else vars(optimizer).setdefault(_MARK, [])
        self._rule = None if optimizer is None else weakref.ref(optimizer)
        self.numbers = HostNumbers()
        """What the host knows of rates on a device."""
        self.restore()

    @property
    def _held(self) -> Optimizer | None:
        return None if self._rule is None else self._rule()

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [] if self._held is None else self._held.param_groups

    @property
    def applied(self) -> bool:
        """Whether a factor is in force: True outside a step means that the step raised."""
        return bool(self._scaled)

    def apply(self, param_groups: list[dict[str, Any]], scale: float) -> None:
        """Multiply every `lr` by `scale`; groups whose `lr` is None have no rate to scale and are left alone."""
        self.restore()
        if scale == 1.0:
            return
        seen: set[int] = set()
        for group in param_groups:
            lr = group.get("lr")
            if lr is None or (isinstance(lr, torch.Tensor) and id(lr) in seen):
                continue
            # Noted first, changed then: an interrupt between the two leaves the user's value, which `restore` knows.
            if isinstance(lr, torch.Tensor):
                seen.add(id(lr))
                number = self.numbers.plain(lr)
                known = number if isinstance(number, float) else None
                self._scaled.append(_Scaled(group, lr.detach().clone(), lr, lr._version + 1, known))
                with torch.no_grad():
                    lr.mul_(scale)
            else:
                self._scaled.append(_Scaled(group, lr, lr * scale, 0))
                group["lr"] = self._scaled[-1].ours

    def restore(self) -> None:
        """Put the user's values back wherever ours still stand; safe at any time, and as often as one likes."""
        for entry in self._scaled:
            for group in self._groups:  # a copy that took the group's place during the step holds the very same number
                if (
                    group is not entry.group
                    and not isinstance(entry.ours, torch.Tensor)
                    and group.get("lr") is entry.ours
                ):
                    group["lr"] = entry.user
            if entry.group.get("lr") is not entry.ours:
                continue  # somebody set another rate during the step: theirs stays
            if isinstance(entry.ours, torch.Tensor):
                if entry.ours._version == entry.version and isinstance(entry.user, torch.Tensor):
                    with torch.no_grad():
                        entry.ours.copy_(entry.user)
                    if entry.number is not None:
                        self.numbers.note(entry.ours, entry.number)
            else:
                entry.group["lr"] = entry.user
        self._scaled.clear()


def read_rates(param_groups: list[dict[str, Any]], numbers: HostNumbers | None = None) -> tuple[float, ...]:
    """Each group's learning rate as a float; 0.0 where it is None. Tensors on a device are read together, unless known."""
    known = HostNumbers() if numbers is None else numbers
    rates = [group.get("lr") for group in param_groups]
    known.bring(rates)
    return tuple(0.0 if lr is None else float(known.plain(lr)) for lr in rates)


def host_rates(param_groups: list[dict[str, Any]], numbers: HostNumbers | None = None) -> tuple[float, ...] | None:
    """The rates when they can be read without a host sync, else None."""
    known = HostNumbers() if numbers is None else numbers
    rates = [known.plain(group.get("lr")) for group in param_groups]
    if any(isinstance(lr, torch.Tensor) and not reading_is_free(lr) for lr in rates):
        return None
    return read_rates(param_groups, known)


def peak_rate(param_groups: list[dict[str, Any]], numbers: HostNumbers | None = None) -> float:
    """The largest rate of the user's schedule over the groups: where schedulers leave it, else the rate of now.

    A rate set by hand beyond what a scheduler left counts too; `Steering` keeps the largest that it has seen.
    """
    keys = ("max_lr", "initial_lr", "lr")
    peaks = [next((group[key] for key in keys if group.get(key) is not None), 0.0) for group in param_groups]
    known = HostNumbers() if numbers is None else numbers
    known.bring(peaks)
    return max(float(known.plain(peak)) for peak in peaks)


class Rates(RateScaler):
    """The rates of one rule along a run: read once a step, held against the peak of the user's schedule, and scaled."""

    def __init__(self, rule: Optimizer) -> None:
        super().__init__(rule)
        self.base = math.nan
        """The schedule's peak when steering began."""
        self.full = False
        """Whether the rate has once been near its schedule's peak: a low one is then no warm-up."""
        self._before = 0.0

    def bring(self) -> None:
        """All that a step asks of numbers that the rule keeps on a device, rates and counts of steps: one host read."""
        self.numbers, rule = HostNumbers(), self._held
        states = [value for state in list(getattr(rule, "state", {}).values()) for value in state.values()]
        settings = [value for group in self._groups for key, value in group.items() if key != "params"]
        self.numbers.bring(tree_leaves([states, settings, getattr(rule, "found_inf", None)]))

    def now(self) -> tuple[float, ...]:
        """Each group's rate; the host knows those on a device from the start of the step, or since they were last written."""
        return read_rates(self._groups, self.numbers)

    def host(self) -> tuple[float, ...] | None:
        """The rates when they can be read without a host sync, else None."""
        return host_rates(self._groups, self.numbers)

    def begin(self) -> float:
        """The schedule's peak, as it was when this was first asked: what steering measures the user's rate by."""
        if math.isnan(self.base):
            self.base = peak_rate(self._groups, self.numbers)
        return self.base

    def are_zero(self, rates: tuple[float, ...]) -> bool:
        """Whether a step at these rates goes nowhere; a rule without rates has its own way to go."""
        return not any(rates) and any(group.get("lr") is not None for group in self._groups)

    def warming(self, rates: tuple[float, ...]) -> str:
        """Why the rate itself is on its way up, when it is: until it has once reached half of its schedule's peak."""
        peak, now = peak_rate(self._groups, self.numbers), max(rates, default=0.0)
        past = now >= 0.5 * peak or now < self._before  # one that falls is past its peak
        self.full, self._before = self.full or past, now
        return "" if self.full else f"the rate stands at {now / peak:.0%} of its schedule's peak"

    def overflowed(self) -> bool:
        """Whether a gradient scaler has told a fused optimizer to leave this step out: there is no step to measure."""
        found = getattr(self._held, "found_inf", None)
        return found is not None and bool(self.numbers.plain(found))

    def scale(self, factor: float) -> None:
        """Put a factor on every group's rate."""
        self.apply(self._groups, factor)


REFUSED = {
    "Rprop": "its step sizes adapt by the sign of the gradient; the rate has no effect after the first step",
}
"""A factor on the rate does nothing."""

DECLARED = {
    "ASGD": "its rate enters one step late: the factor of this step acts in the next one",
    "Adafactor": "its rate is capped at 1 / sqrt(step): a factor acts only below that cap",
    "AdamWScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "SGDScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "RAdamScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "Prodigy": "its own estimate of the distance multiplies the rate and answers to what the factor does",
    "DAdaptAdam": "its own estimate of the distance multiplies the rate and answers to what the factor does",
    "DAdaptSGD": "its own estimate of the distance multiplies the rate and answers to what the factor does",
}
"""A factor on the rate acts, but not in proportion or not at once."""


def check_steerable(optimizer: Optimizer) -> str:
    """Return what must be declared about steering `optimizer`, "" when its step is proportional to its rate.

    Raises:
        SteeringError: when the rate does not scale the step at all, with what to do.
    """
    reason = _refusal(optimizer)
    name = type(optimizer).__name__
    if reason:
        raise SteeringError(f'{name} cannot be steered: {reason}. Use mode="report", or another optimizer')
    declared = next((DECLARED[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in DECLARED), "")
    return f"steering {name}: {declared}" if declared else ""


def _refusal(optimizer: Optimizer) -> str:
    for kind in type(optimizer).__mro__:
        if kind.__name__ in REFUSED:
            return REFUSED[kind.__name__]
    if any(group.get("line_search_fn") for group in optimizer.param_groups):
        return "its line search chooses the step's length, whatever the rate"
    if any(group.get("relative_step") for group in optimizer.param_groups):
        return "relative_step=True makes it ignore its learning rate"
    if all(group.get("lr") is None for group in optimizer.param_groups):
        return "none of its parameter groups has a learning rate"
    return ""
