"""A call of the user's model, seen from outside: the hooks that are there for one step, and what the call may change."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from topoopt.modules import innermost

if TYPE_CHECKING:
    from topoopt.curvature.taping.tape import Tape


class Hook:
    """A hook on the user's module that neither pickles nor copies along with it, and keeps nothing alive."""

    def __init__(self, tape: Tape, name: str, method: str) -> None:
        self._tape, self._name, self._method = weakref.ref(tape), name, method

    @torch.compiler.disable
    def __call__(self, module: nn.Module, *rest: Any) -> None:
        """Tell the tape, if it is still there."""
        tape = self._tape()
        if tape is not None:
            getattr(tape, self._method)(self._name, module, *rest)

    def __reduce__(self) -> Any:
        return _nothing_to_do, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return nothing


def nothing(*args: Any, **kwargs: Any) -> None:
    """What a copy of a watched model calls instead."""


def _nothing_to_do() -> Any:
    return nothing


_DDP = nn.parallel.DistributedDataParallel.forward.__code__.co_filename


def called_through(own: nn.Module) -> nn.Module | None:
    """The data-parallel wrapper among the callers of the model, where it is called by one."""
    frame: Any = sys._getframe(3)
    for _ in range(16):
        if frame is None:
            return None
        # The locals of the user's own frames are not looked at: before Python 3.13 that holds on to them until they end.
        owner = frame.f_locals.get("self") if frame.f_code.co_filename == _DDP else None
        if isinstance(owner, nn.parallel.DistributedDataParallel) and innermost(owner) is own:
            return owner
        frame = frame.f_back
    return None


class State:
    """What a call may change beside its result: buffers, weights that are not trained, plain attributes."""

    def __init__(self, module: nn.Module, trained: Mapping[int, int], moving: set[str]) -> None:
        self._module, self._moving = module, frozenset(moving)
        others = [(n, p) for n, p in module.named_parameters() if id(p) not in trained]
        self._others = [(n, p, p._version, _place(p)) for n, p in others]
        self._clones = {n: p.detach().clone() for n, p in others if n in moving}
        self._buffers = [(n, b, b._version) for n, b in module.named_buffers()]
        self._clones |= {n: b.detach().clone() for n, b, _ in self._buffers if small(b) or n in moving}
        self._plain = [(n, m, _plain_attributes(m)) for n, m in module.named_modules()]

    def changes(
        self, after: dict[tuple[str, str], Any]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, str], Any], set[str]]:
        """(values before, of what moved; attributes before, of those that changed; names of what moved).

        `after` holds what earlier calls of this step left behind; a value that is still the same was made by them, and will
        be made anew by their replay.
        """
        now = dict(self._module.named_buffers())
        moved = {n for n, p, version, place in self._others if p._version != version or _place(p) != place}
        moved |= self._moving & self._clones.keys()
        moved |= {n for n, b, version in self._buffers if now.get(n) is not b or b._version != version}
        # Statistics of norms are written to without a trace in their version, and `.data` leaves none either.
        before = {n: c for n, c in self._clones.items() if n in moved or torch.is_floating_point(c)}
        changed: dict[tuple[str, str], Any] = {}
        for name, module, plain in self._plain:
            current = _plain_attributes(module)
            for key in plain.keys() | current.keys():
                was, now_is = plain.get(key, _MISSING), current.get(key, _MISSING)
                if _same(was, now_is):
                    continue
                if not ((name, key) in after and _same(after[name, key], was)):
                    changed[name, key] = was
                after[name, key] = now_is
        return before, changed, moved


def _place(tensor: Tensor) -> int:
    """Where its numbers lie; 0 where that cannot be asked."""
    return 0 if hasattr(tensor, "full_tensor") or tensor.device.type == "meta" else tensor.data_ptr()


_MISSING = object()
_INTERNAL = frozenset(vars(nn.Module()))


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a forward may keep on its module beside parameters and buffers; containers as they are now."""
    return {k: type(v)(v) if type(v) in (list, dict, set) else v for k, v in vars(module).items() if k not in _INTERNAL}


def _same(a: Any, b: Any) -> bool:
    if type(a) in (list, dict, set) and type(a) is type(b):
        if len(a) != len(b):
            return False
        pairs = ((a[k], b.get(k, _MISSING)) for k in a) if isinstance(a, dict) else zip(a, b)
        return all(x is y for x, y in pairs)
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)


def small(value: Any) -> bool:
    """Whether a tensor is worth a copy, up to 256 MiB: one that a call of the model might write to."""
    return (
        isinstance(value, Tensor)
        and not hasattr(value, "full_tensor")
        and value.numel() * value.element_size() <= 1 << 28
    )
