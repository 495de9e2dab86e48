"""What a tape holds: operations in order, what stands for their tensors, and the losses that `backward` was called on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from topoopt.curvature.noise import GeneratorStates


@dataclass(frozen=True)
class Weight:
    """Stands for one of the optimizer's parameters."""

    index: int


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor that an entry made."""

    index: int


@dataclass(frozen=True)
class Kept:
    """A tensor that the tape found: its value now must be its value then."""

    tensor: Tensor
    version: int
    own: bool = False
    """The tape's copy, which nobody else writes to."""

    @property
    def intact(self) -> bool:
        """Whether nobody has written to it since."""
        return self.own or self.tensor._version == self.version


@dataclass(frozen=True)
class Setting:
    """What stands around an operation without being an argument."""

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls, devices: Sequence[str]) -> Setting:
        """As it is on this thread."""
        kinds = tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)
        return cls(torch.is_grad_enabled(), kinds)

    @property
    def low_precision(self) -> bool:
        """Whether autocast is on."""
        return any(enabled for _, enabled, _ in self.autocast)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The same inside the block."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled=enabled))
            yield


@dataclass
class Entry:
    """One operation: a torch function, or (`module` not None) a call of the model or one of its parts."""

    func: Callable[..., Any] | None
    args: Any
    kwargs: Any
    outs: list[int | None]
    setting: Setting
    noise: GeneratorStates | None = None
    name: str = ""
    module: str | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Values before the call of what is no trained weight: buffers, and parameters that the forward itself moves."""
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    """(module, name) -> value before the call, of plain attributes that the call changed."""
    versions: list[int] = field(default_factory=list)
    """Of the weights, when the model was called."""
    weights: dict[str, Any] = field(default_factory=dict)
    """What stood in the place of trained weights (`torch.func.functional_call`)."""


@dataclass
class Loss:
    """What `backward` was called on."""

    of: Any
    gradient: Any
    value: Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a result, in an order that is the same each time; classes that pytrees do not know are opened once."""
    found: list[Tensor] = []
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found.extend(v for v in leaf.values() if isinstance(v, Tensor))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            found.extend(v for v in vars(leaf).values() if isinstance(v, Tensor))
    return found


def relevant(entries: Sequence[Entry], losses: Sequence[Loss]) -> tuple[list[Entry], list[Loss]]:
    """The losses that hang on the weights, and the entries that these hang on, in order."""
    made_by = {out: entry for entry in entries for out in entry.outs if out is not None}
    needed: set[int] = set()
    found = []
    for loss in losses:
        ancestors, hangs = _ancestors(loss.of, made_by, entries)
        if hangs:
            found.append(loss)
            needed |= ancestors
    return [e for e in entries if id(e) in needed], found


def _ancestors(root: Any, made_by: Mapping[int, Entry], entries: Sequence[Entry]) -> tuple[set[int], bool]:
    """Ids of the entries that `root` hangs on, and whether there is a weight among what they use."""
    wanted = {root.index} if isinstance(root, Slot) else set()
    hangs, needed = isinstance(root, Weight), set()
    for entry in reversed(entries):
        if not any(out in wanted for out in entry.outs if out is not None):
            continue
        needed.add(id(entry))
        hangs = hangs or entry.module is not None
        for ref in tree_flatten((entry.args, entry.kwargs, entry.weights))[0]:
            if isinstance(ref, Slot):
                wanted.add(ref.index)
            hangs = hangs or isinstance(ref, Weight)
    return needed, hangs
