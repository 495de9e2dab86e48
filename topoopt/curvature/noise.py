"""Noise: where torch's generators stood, and drawing from there again without touching them.

Dropout must draw the same mask whenever a step is replayed. The user's generators are not set back for it, not even for a
moment: other threads draw from them. Random operations are given a generator of the replay's own, put where theirs stood; a
dispatch mode does it, on this thread alone. What takes no generator (fused dropout and attention on an accelerator, recurrent
kernels) is drawn from theirs, which is put back right after that one operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class GeneratorStates:
    """Where the default generators of the host and of the weights' devices stood."""

    states: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def now(cls, tensors: Sequence[Tensor]) -> GeneratorStates:
        """As they stand; some 5 KB for the host, 16 bytes for a device, no synchronisation."""
        devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
        states = [(torch.device("cpu"), torch.get_rng_state())]
        for device in sorted(devices, key=str):
            read = getattr(torch.get_device_module(device), "get_rng_state", None)
            if read is not None:
                states.append((device, read(device)))
        return cls(tuple(states))

    def moved(self) -> bool:
        """Whether any of them has been drawn from since."""
        return any(not torch.equal(state, _state_of(device)) for device, state in self.states)


def _state_of(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


class Replaying(TorchDispatchMode):
    """Random operations draw from generators of their own, which begin where `states` says."""

    def __init__(self, states: GeneratorStates) -> None:
        super().__init__()
        self._states = dict(states.states)
        """Where the replay's own numbers stand, on devices whose only generator is the default one."""
        self._generators: dict[torch.device, torch.Generator] = {}
        for device, state in states.states:
            own = _generator(device)
            if own is not None:
                own.set_state(state)
                self._generators[device] = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        device = _device_of(args, kwargs)
        own = self._generators.get(device)
        taking = _taking_a_generator(func)
        if own is not None and taking is not None:
            return taking(*args, **{**kwargs, "generator": own})
        with self._lent(device):  # fused dropout, fused attention and recurrent kernels with dropout
            return func(*args, **kwargs)

    @contextmanager
    def _lent(self, device: torch.device) -> Iterator[None]:
        """The default generator put where ours stands, for one operation."""
        if device not in self._states:
            yield
            return
        own, theirs = self._generators.get(device), _state_of(device)
        _set_state(device, self._states[device] if own is None else own.get_state())
        try:
            yield
        finally:
            if own is None:
                self._states[device] = _state_of(device)
            else:
                own.set_state(_state_of(device))
            _set_state(device, theirs)


def _generator(device: torch.device) -> torch.Generator | None:
    """A new one; None on a device that has none but its default."""
    try:
        return torch.Generator(device)
    except (RuntimeError, NotImplementedError):
        return None


def _taking_a_generator(func: Any) -> Any:
    """The operation, or its other form that takes a generator; None where there is none."""
    if any(a.name == "generator" for a in func._schema.arguments):
        return func
    packet, wanted = func.overloadpacket, [a.name for a in func._schema.arguments]
    for name in packet.overloads():
        other = getattr(packet, name)
        names = [a.name for a in other._schema.arguments]
        if "generator" in names and [n for n in names if n != "generator"] == wanted:
            return other
    return None


@contextmanager
def put_back(states: GeneratorStates) -> Iterator[None]:
    """The default generators begin where `states` says, and are put back after: for code that sets them itself.

    Activation checkpointing does: it draws a second time from the state that it saw. Another thread that draws meanwhile draws
    the same numbers again.
    """
    theirs = [(device, _state_of(device)) for device, _ in states.states]
    for device, state in states.states:
        _set_state(device, state)
    try:
        yield
    finally:
        for device, state in theirs:
            _set_state(device, state)


def _device_of(args: Any, kwargs: Any) -> torch.device:
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    if first is not None:
        return first.device
    device = kwargs.get("device")
    return torch.device("cpu") if device is None else torch.device(device)
