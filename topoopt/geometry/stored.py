"""Clouds that windows are measured against, kept on the host in half the size where that is exact enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topoopt.device import Ready
from topoopt.geometry.cloud import Cloud, lengths

TOLERANCE = 1e-3
"""Relative error of a distance, and so of a distortion, up to which half the size is exact enough."""
STEPS = 32767
"""The largest 16-bit integer: a point's entries are multiples of its largest over this."""


@dataclass(frozen=True)
class StoredCloud:
    """A cloud up to a shift, on the host (or wherever it was asked for), with what storing it has cost.

    Half the size are 16-bit integers in a unit of each point's own, of the centred points: evenly spaced over a point's range
    they are off by a third of what float16 is. Rounding has moved no point by more than `rounding`, so no distance by more
    than twice that: the lower and upper distortion of two clouds are right to `error` = 2 rounding / margin, margin being the
    smallest distance. That is the worst case; what was seen is a tenth of it and less (benchmarks/geometry_stored.py).
    """

    points: Tensor  # (n, d) int16, or as given
    units: Tensor | None
    """What a point's integers are multiples of: (n, 1); None where the points are as given."""
    rounding: float
    """The largest distance between a point and what is stored of it, in the units of the weights; 0 if none was rounded."""
    error: float
    """Bound on the relative error of every distance of `margin` and above; 0 where nothing was rounded."""
    ready: Ready | None = field(default=None, repr=False, compare=False)
    """When a copy on the host that stood in a device's queue is there."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        points: Tensor | Cloud,
        *,
        margin: float = 0.0,
        tolerance: float = TOLERANCE,
        device: torch.device | str = "cpu",
        rounding: float | None = None,
    ) -> StoredCloud:
        """Store points (n, d); in half the size if their smallest distance, `margin`, makes the error at most `tolerance`.

        With a margin of 0 they are kept in float32, and points that are in 16 bits already as they are. A copy, to the host
        one that is not waited for (it stands in the device's queue, in pinned memory), and a host read unless `rounding` is
        given, which `rounding_of` told before.
        """
        cloud = Cloud.of(points)
        if margin > 0 and cloud.points.numel() and cloud.given.element_size() > 2:
            moved = float(rounding_of(cloud)) if rounding is None else rounding
            if (error := 2 * moved / margin) <= tolerance:
                whole, units = _halved(cloud)
                return cls(
                    _sent(whole.to(torch.int16), device), _sent(units / cloud.scale, device), moved, error, Ready(units)
                )
        kept = cloud.given if cloud.given.element_size() <= 2 else cloud.points
        return cls(kept.to(device, copy=True, non_blocking=True), None, 0.0, 0.0, Ready(kept))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.points.nbytes + (0 if self.units is None else self.units.nbytes)

    def to(self, device: torch.device | str) -> Tensor:
        """The points on a device, in the precision they are computed in, up to a shift: (n, d); nothing is waited for."""
        if torch.device(device).type == "cpu":
            self._wait()
        points = _sent(self.points, device)
        if self.units is not None:
            units = _sent(self.units, device)
            return points.to(units.dtype).mul_(units)
        return points if points.dtype is torch.float64 else points.float()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for a checkpoint."""
        self._wait()
        return {"points": self.points, "units": self.units, "rounding": self.rounding, "error": self.error}

    def _wait(self) -> None:
        if self.ready is not None:
            self.ready.wait()

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StoredCloud:
        """Take up `state_dict`'s values."""
        return cls(state["points"], state["units"], float(state["rounding"]), float(state["error"]))


def rounding_of(cloud: Cloud) -> Tensor:
    """The largest distance by which keeping it in half the size moves a point of a cloud: 0-dim, on the device."""
    if not cloud.points.numel():
        return cloud.points.new_zeros(())
    whole, units = _halved(cloud)
    moved = lengths(whole.mul_(units).sub_(cloud.centred))
    moved += torch.finfo(moved.dtype).eps * cloud.norms.sqrt()  # what centring has rounded off
    return moved.amax() / cloud.scale


def _halved(cloud: Cloud) -> tuple[Tensor, Tensor]:
    """Whole numbers, and the unit of each centred point."""
    units = (cloud.centred.abs().amax(dim=1, keepdim=True) / STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    return (cloud.centred / units).round_(), units


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.to(device, non_blocking=True)


def as_cloud(kept: Tensor | Cloud | StoredCloud, device: torch.device) -> Cloud:
    """A reference, however it is kept, as a cloud on a device."""
    if isinstance(kept, StoredCloud):
        return Cloud(kept.to(device))
    return Cloud.of(kept if isinstance(kept, Cloud) else kept.to(device))
