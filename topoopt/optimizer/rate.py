"""The factor on the learning rate: put on for one step, taken off after it, without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class _Scaled:
    """One scaled rate: where it stands, what the user had there, and what we put there."""

    group: dict[str, Any]
    user: float | torch.Tensor
    ours: float | torch.Tensor
    version: int


class RateScaler:
    """Multiplies each parameter group's current `lr` and restores it exactly.

    The *current* value is multiplied, so any scheduler composes with it; the user's value is put back only where nobody
    wrote another one during the step. A tensor `lr` is changed in place (compiled and capturable optimizers hold on to
    it), once even when several groups share it.
    """

    def __init__(self) -> None:
        self._scaled: list[_Scaled] = []

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
            if isinstance(lr, torch.Tensor):
                seen.add(id(lr))
                user = lr.detach().clone()
                with torch.no_grad():
                    lr.mul_(scale)
                self._scaled.append(_Scaled(group, user, lr, lr._version))
            else:
                group["lr"] = lr * scale
                self._scaled.append(_Scaled(group, lr, group["lr"], 0))

    def restore(self) -> None:
        """Put the user's values back wherever ours still stand."""
        for entry in self._scaled:
            if entry.group.get("lr") is not entry.ours:
                continue  # somebody set another rate during the step: theirs stays
            if isinstance(entry.ours, torch.Tensor):
                if entry.ours._version == entry.version and isinstance(entry.user, torch.Tensor):
                    with torch.no_grad():
                        entry.ours.copy_(entry.user)
            else:
                entry.group["lr"] = entry.user
        self._scaled.clear()


def read_rates(param_groups: list[dict[str, Any]]) -> tuple[float, ...]:
    """Each group's learning rate as a float (reads a tensor `lr`: a host sync on a device); 0.0 where it is None."""
    return tuple(float(group["lr"]) if group.get("lr") is not None else 0.0 for group in param_groups)


def host_rates(param_groups: list[dict[str, Any]]) -> tuple[float, ...] | None:
    """The rates when they can be read without a host sync, else None."""
    rates = [group.get("lr") for group in param_groups]
    if any(isinstance(lr, torch.Tensor) and lr.device.type != "cpu" for lr in rates):
        return None
    return read_rates(param_groups)


def peak_rate(param_groups: list[dict[str, Any]]) -> float:
    """The largest rate of the user's schedule over the groups: where schedulers leave it, else the rate of now."""
    keys = ("max_lr", "initial_lr", "lr")
    peaks = (next((group[key] for key in keys if group.get(key) is not None), 0.0) for group in param_groups)
    return max(float(peak) for peak in peaks)
