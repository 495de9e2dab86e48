"""A device made of the CPU, to show on any machine that code is device-generic and how often the host waits for it.

It is torch's place for devices of others (PrivateUse1) under the name "accel". Every operation runs on the CPU tensor that
lies behind; a mix of devices raises, and whatever would stop a real device's queue is written down, with the thread and
the lines of topoopt that asked: a number or a copy brought to the host, a copy to the device out of pageable memory that does
not say `non_blocking`, an operation whose result's size depends on the values. The registration belongs to the process:
import this in a process of its own.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import topoopt

ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
"""Operations that wait for the device to know how large their result is."""
PACKAGE = str(Path(topoopt.__file__).parent)


@dataclass(frozen=True)
class Wait:
    """One time that the host waited for the device."""

    thread: str
    what: str
    asked: tuple[str, ...]
    """Lines of topoopt on the stack, the innermost first; none where the user's own code asked."""

    def __str__(self) -> str:
        return f"{self.thread}: {self.what}, asked by {' < '.join(self.asked[:4]) or 'the training itself'}"


WAITS: list[Wait] = []


def note(what: str) -> None:
    """Write a wait down."""
    inside = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
    frames = [
        f for f in inside if not (f.filename.endswith("wrapper.py") and f.name == "step")
    ]  # the optimizer's own step
    asked = tuple(f"{Path(f.filename).relative_to(PACKAGE)}:{f.lineno} {f.name}" for f in reversed(frames))
    WAITS.append(Wait(threading.current_thread().name, what, asked))


@contextmanager
def waits() -> Iterator[list[Wait]]:
    """What topoopt made this thread wait for inside the block; not the optimizer's own step, nor copies that are queued."""
    start, found, own = len(WAITS), [], threading.current_thread().name
    yield found
    found += [w for w in WAITS[start:] if w.thread == own and w.asked and not w.what.endswith("later")]


class Backend:
    """What torch asks of `torch.accel`: one device, whose generator is the CPU's."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """torch.manual_seed has just set the one generator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        note("synchronize")


_setup_privateuseone_for_python_backend("accel", backend_module=Backend())
DEVICE = torch.device("accel:0")


class OnDevice(Tensor):
    """A tensor of the device; `memory` is the CPU tensor behind it."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(
            cls, memory.shape, strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        note("tolist")
        return self.memory.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")
        return self.cpu().numpy()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.memory})"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on what lies behind its arguments."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [t for t in given if isinstance(t, OnDevice)]
    if func not in COPIES:
        _refuse_a_mix(func, given)
        _note_operation(func, args)
    bare, options = tree_map(lambda t: t.memory if isinstance(t, OnDevice) else t, (args, kwargs))
    device = options.pop("device", None)
    if device is not None:
        options["device"] = "cpu"
        options.pop("pin_memory", None)
    out = func(*bare, **options)
    if func in COPIES:
        source = args[1] if func is ATEN.copy_.default else args[0]
        goal = args[0].device if func is ATEN.copy_.default else torch.device(device or args[0].device)
        _note_copy(source, goal, kwargs.get("non_blocking") or args[2:] == (True,))
        if goal.type == "cpu":
            return args[0] if func is ATEN.copy_.default else out
    if _each_by_itself(func) and isinstance(out, (list, tuple)):
        return [OnDevice(t) if isinstance(source, OnDevice) else t for t, source in zip(out, args[0])]
    return tree_map(lambda t: _back(t, ours), out)


def _each_by_itself(func: Any) -> bool:
    """An operation on a list of tensors, which may be apart."""
    return func.overloadpacket.__name__.startswith("_foreach_")


def _back(t: Any, ours: list[OnDevice]) -> Any:
    if not isinstance(t, Tensor) or isinstance(t, OnDevice):
        return t
    for one in ours:  # in place and out= give back what they were given
        if one.memory is t:
            return one
    return OnDevice(t)


def _refuse_a_mix(func: Any, given: list[Tensor]) -> None:
    ours = [t for t in given if isinstance(t, OnDevice)]
    others = [t for t in given if not isinstance(t, OnDevice) and t.dim() > 0]
    by_host = func in (ATEN.index.Tensor, ATEN.index_put_.default)  # a host's indices are taken, and wait
    if ours and others and not by_host and not _each_by_itself(func):
        at = f"{DEVICE} and {others[0].device}"
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {at}! ({func})"
        )


def _note_operation(func: Any, args: Any) -> None:
    name = func.overloadpacket.__name__
    if func is ATEN._local_scalar_dense.default:
        note("item")
    elif name in SIZED_BY_VALUES:
        note(name)
    elif name in ("index", "index_put_", "index_put") and any(
        isinstance(t, Tensor) and (t.dtype is torch.bool or t.device != DEVICE) for t in args[1]
    ):
        note(f"{name} by a mask or a host's indices")


def _note_copy(source: Tensor, goal: torch.device, non_blocking: bool) -> None:
    if isinstance(source, OnDevice) and goal.type == "cpu":
        note("copy to host, later" if non_blocking else "copy to host")
    elif not isinstance(source, OnDevice) and goal.type != "cpu" and not non_blocking:
        note("copy to device")


def on_device(func: Any) -> Callable[..., Any]:
    """A factory of tensors."""
    return lambda *args, **kwargs: run(func, args, {**kwargs, "device": DEVICE})


FACTORIES = torch.library.Library("aten", "IMPL")
FACTORIES.impl("empty.memory_format", on_device(ATEN.empty.memory_format), "PrivateUse1")
FACTORIES.impl("empty_strided", on_device(ATEN.empty_strided.default), "PrivateUse1")
REST = torch.library.Library("_", "IMPL")
REST.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
