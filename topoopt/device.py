"""When the host may look at a number, and what it waits for: the one place for reads together, events and queues.

A read by the host stops a device's queue: everything that was queued must be done first. So numbers that are wanted at the
same time are stacked on the device and brought over in one copy. All of it goes through `torch.accelerator`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def reading_is_free(tensor: Tensor) -> bool:
    """Whether looking at a number stops no queue: on a CPU there is none."""
    return tensor.device.type == "cpu"


def wide(tensor: Tensor) -> Tensor:
    """The numbers in float64, or in float32 on a device that has none."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def brought_over(numbers: Sequence[Tensor]) -> list[float]:
    """Tensors of one number each, as Python's: one host read for each device that they are on."""
    places: dict[torch.device, list[int]] = {}
    for k, number in enumerate(numbers):
        places.setdefault(number.device, []).append(k)
    found: dict[int, float] = {}
    for here in places.values():
        stacked = torch.stack([wide(numbers[k].detach()).reshape(()) for k in here])
        found |= dict(zip(here, stacked.tolist()))
    return [found[k] for k in range(len(numbers))]


def sent(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of the host in the type of a tensor and where it is, without waiting for what is queued there."""
    return values.to(like.dtype).to(like.device, non_blocking=True)


def normal(size: int, seed: int, device: torch.device) -> Tensor:
    """Standard normal numbers from a generator of their own, drawn on the device where it has generators: (size,)."""
    try:
        own = torch.Generator(device)
    except (RuntimeError, NotImplementedError):  # a device of others may have none
        own = torch.Generator()
    return torch.randn(size, generator=own.manual_seed(seed), device=own.device).to(device, non_blocking=True)


class HostNumbers:
    """Numbers that an optimizer holds as tensors on a device (a capturable rate, a fused rule's step): together, and once.

    What was brought over holds as long as the tensor has not been written to.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, float]] = {}

    def bring(self, values: Iterable[Any]) -> None:
        """Bring over those of the values that are numbers on a device and not known: one host read."""
        fresh = {id(v): v for v in values if _is_number_on_device(v) and not self._knows(v)}
        for tensor, number in zip(fresh.values(), brought_over(list(fresh.values()))):
            self._known[id(tensor)] = tensor, tensor._version, number

    def plain(self, value: Any) -> Any:
        """The value, as a float where it was brought over; of a list or a tuple each part."""
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            return type(value)(self.plain(part) for part in value)
        return self._known[id(value)][2] if isinstance(value, Tensor) and self._knows(value) else value

    def note(self, tensor: Tensor, number: float) -> None:
        """Take down what was just written into a tensor."""
        self._known[id(tensor)] = tensor, tensor._version, number

    def _knows(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known[0] is tensor and known[1] == tensor._version


def _is_number_on_device(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.numel() == 1
        and not reading_is_free(value)
        and not callable(getattr(value, "full_tensor", None))
    )


class Ready:
    """The moment at which a tensor is there, on the stream where it was made; another thread can wait for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        if not reading_is_free(tensor):
            try:
                self._event = torch.accelerator.current_stream(tensor.device).record_event()
            except (
                RuntimeError,
                NotImplementedError,
                AttributeError,
            ):  # a device without streams has its tensors at once
                self._event = None

    def wait(self) -> None:
        """Return when it is there: at once for the host's, and on a device that records no events."""
        if self._event is not None and not self._event.query():
            self._event.synchronize()


def timed(work: Callable[[], Sequence[Tensor]]) -> float:
    """Seconds that work takes, its queue included; the second time, since the first one fills caches."""
    work()
    began = time.perf_counter()
    done = work()
    if not reading_is_free(done[0]):
        torch.accelerator.current_stream(done[0].device).synchronize()
    return time.perf_counter() - began
