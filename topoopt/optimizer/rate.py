"""The factor on the learning rate: put on for one step, taken off after it, without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from topoopt.device import HostNumbers, reading_is_free

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
        self.numbers = HostNumbers()
        """What the host knows of rates on a device."""
        self.restore()

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
