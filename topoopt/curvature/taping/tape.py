"""The tape: what the user's own step computes, written down while it computes it, so that it can be replayed at other weights.

Two things are seen on a step that is due. Calls of the model, by forward hooks that are there for that step only: each is one
entry, with its arguments, the state of buffers and generators before it, and its autocast. And the torch functions between
the model and `backward`, by a `TorchFunctionMode` that is on between these calls: each that takes part in the gradient is an
entry. What does not take part is a value like any other. Nothing of the user's is run a second time, no graph is kept, and
`backward` is called with the arguments that the user gave it.

What was not seen is said: `gap` names the first thing for which the tape cannot stand.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from topoopt.curvature.foreign import foreign_draws
from topoopt.curvature.noise import GeneratorStates
from topoopt.curvature.taping.calls import Hook, State, called_through, small
from topoopt.curvature.taping.entries import Entry, Kept, Loss, Setting, Slot, Weight, relevant, tensors_in
from topoopt.curvature.taping.left import LeftByBackward
from topoopt.modules import innermost

MOVES = "the forward moves weights that are not trained ({}); from now on they are kept"
LONGEST = 20_000
"""Entries after which a step is given up: it is no step any more, or one that is not worth the memory."""
RANDOM = (
    "dropout",
    "rand",
    "bernoulli",
    "normal",
    "multinomial",
    "exponential",
    "poisson",
    "uniform",
    "attention",
    "lstm",
    "gru",
)
"""Parts of the names of functions that may draw: the state of the generators is kept with them."""
WRITES_STATISTICS = ("batch_norm", "instance_norm")
"""Functions that write to running statistics among their arguments, which do not enter what they return."""
UPDATES = frozenset(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
)


class Tape(TorchFunctionMode):
    """Writes down one step of `model`, from the end of the step before it until `stop`.

    Args:
        model: what the user calls, wrapped (DDP, compiled) or not.
        parameters: the optimizer's, each once.
        inside: the model is not called itself: watch its outermost parts, and everything between them.
        moving: names of buffers and parameters that a forward is known to write to; what is found is added to it.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        *,
        inside: bool = False,
        moving: set[str] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.own = model, innermost(model)
        self.parameters = list(parameters)
        self.wrapper: nn.Module | None = None
        """A data-parallel wrapper that the model was called through."""
        self.entries: list[Entry] = []
        self.losses: list[Loss] = []
        self.gap = ""
        self.inside = inside
        self.moving: set[str] = set() if moving is None else moving
        self.calls = 0
        self.left = LeftByBackward(self.parameters)
        self._index = {id(p): i for i, p in enumerate(self.parameters)}
        self._names = {n: id(p) for n, p in self.own.named_parameters(remove_duplicate=False) if id(p) in self._index}
        self._slots: Any = WeakIdKeyDictionary()
        self._count = 0
        self._on = self._closed = False
        self._thread = threading.get_ident()
        self._depth = 0
        self._after: dict[tuple[str, str], Any] = {}
        self._devices = sorted({"cpu", *(p.device.type for p in self.parameters)} - {"meta"})
        self._handles: list[Any] = []

    # -- from one end of the step to the other -----------------------------------------------------------------------

    def start(self) -> Tape:
        """Watch the model; with `inside`, everything from now on."""
        self._handles = [hook for name, module in self._watched() for hook in self._hooked(name, module)]
        if self.inside:
            self._resume()
        return self

    def stop(self) -> None:
        """Take everything off; what was written down stays."""
        self._closed = True
        self._pause()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watched(self) -> list[tuple[str, nn.Module]]:
        if self.inside:
            return [(name, module) for name, module in self.own.named_modules() if name]
        return [("", self.own)] if self.own is self.model else [("", self.model), ("", self.own)]

    def _hooked(self, name: str, module: nn.Module) -> list[Any]:
        before: Any = Hook(self, name, "_before_call")
        after: Any = Hook(self, name, "_after_call")
        return [
            module.register_forward_pre_hook(before, with_kwargs=True, prepend=False),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def _resume(self) -> None:
        """Switch the mode on, unless a mode of the user's is on: that one would be taken off in our place."""
        if self._on or self._closed or threading.get_ident() != self._thread:
            return
        if any(not isinstance(mode, Tape) for mode in _modes()):
            self._miss("a function mode of your own is active around the step")
            return
        self.__enter__()
        self._on = True

    def _pause(self) -> None:
        """Switch the mode off, beneath other optimizers' tapes too; they stay on."""
        if not self._on or threading.get_ident() != self._thread:
            return
        modes = _modes()
        place = next((i for i, mode in enumerate(modes) if mode is self), None)
        if place is None or any(not isinstance(mode, Tape) for mode in modes[place:]):
            return
        for mode in reversed(modes[place:]):
            mode.__exit__(None, None, None)
        for mode in modes[place + 1 :]:
            mode.__enter__()
        self._on = False

    def _miss(self, what: str) -> None:
        self.gap = self.gap or what

    # -- what an entry refers to -------------------------------------------------------------------------------------

    def _refer(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        index = self._index.get(id(value))
        if index is not None:
            return Weight(index)
        if value in self._slots:
            return Slot(self._slots[value])
        if value.grad_fn is not None and not self._closed:
            if not self._reaches(value.grad_fn):
                return Kept(value.detach(), value._version)  # another network's: no function of the weights
            self._miss(
                f"a tensor of shape {tuple(value.shape)} came into the step by a way that torch does not show "
                f"(made by {value.grad_fn.name()}: a custom autograd.Function, or computed before the step was watched)"
            )
        return Kept(value, value._version)

    def _reaches(self, node: Any) -> bool:
        """Whether a graph may lead to a weight; what a function of the user's own hides may."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            if id(getattr(node, "variable", None)) in self._index or isinstance(node, BackwardCFunction):
                return True
            fresh = {following for following, _ in node.next_functions if following is not None} - seen
            seen |= fresh
            waiting.extend(fresh)
        return False

    def _copied(self, value: Any) -> Any:
        """As above, for arguments of a call, which the model may write to."""
        found = self._refer(value)
        if not isinstance(found, Kept) or not small(value) or value.requires_grad:
            return (
                found  # a leaf that asks for a gradient: the step may differentiate by it, so it stays one and the same
            )
        return Kept(value.detach().clone(), 0, own=True)

    def _give(self, result: Any) -> list[int | None]:
        outs: list[int | None] = []
        for tensor in tensors_in(result):
            if id(tensor) in self._index or not tensor.requires_grad or isinstance(tensor, nn.Parameter):
                outs.append(None)  # a weight that was handed through as it is (`flatten` does) was not made here
                continue
            if tensor not in self._slots:
                self._slots[tensor] = self._count
                self._count += 1
            outs.append(self._slots[tensor])
        return outs

    # -- functions ---------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._closed or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        if func is Tensor.backward or func is torch.autograd.backward:
            return self._backward(func, args, kwargs)
        if not torch.is_grad_enabled() or len(self.entries) > LONGEST:
            return func(*args, **kwargs)
        return self._function(func, args, kwargs)

    def _function(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        target = args[0] if args and isinstance(args[0], Tensor) and _in_place(name) else kwargs.get("out")
        before = None
        if isinstance(target, Tensor) and target not in self._slots and id(target) not in self._index:
            before = target.detach().clone()  # becomes part of the graph by being written to
        noise = GeneratorStates.now(self.parameters) if any(part in name for part in RANDOM) else None
        result = func(*args, **kwargs)
        made = tensors_in(result)
        if isinstance(target, Tensor) and not any(t is target for t in made):
            made = [*made, target]
        if not any(t.requires_grad for t in made):
            return result
        if len(self.entries) == LONGEST:
            self._miss(f"the step has more than {LONGEST} operations outside the model")
        if before is not None:
            swap = Kept(before, 0, own=True)
            refs = tree_map(lambda v: swap if v is target else self._refer(v), (args, kwargs))
        else:
            refs = tree_map(self._refer, (args, kwargs))
        refs = self._apart_from_statistics(name, refs)
        outs = self._give((result, target) if isinstance(target, Tensor) else result)
        self.entries.append(Entry(func, refs[0], refs[1], outs, Setting.now(self._devices), noise, name))
        return result

    def _apart_from_statistics(self, name: str, refs: Any) -> Any:
        """Arguments that the function has just written to: statistics, of which a copy does, or else what is not known."""

        def own(value: Any) -> Any:
            if not isinstance(value, Kept) or value.intact:
                return value
            return Kept(value.tensor.detach().clone(), 0, own=True)

        if any(part in name for part in WRITES_STATISTICS):
            # written before it was referred to: the version is the new one, and a replay must not write again
            return tree_map(
                lambda v: (
                    Kept(v.tensor.detach().clone(), 0, own=True)
                    if isinstance(v, Kept) and not v.tensor.requires_grad and v.tensor.ndim == 1
                    else own(v)
                ),
                refs,
            )
        return refs

    # -- backward ----------------------------------------------------------------------------------------------------

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.losses and self.left.was_zeroed():  # their gradients are not in `.grad` any more
            self.losses = []
        roots = args[0] if args else kwargs.get("tensors")
        roots = [roots] if isinstance(roots, Tensor) else list(roots)
        given = kwargs.get("gradient", kwargs.get("grad_tensors", args[1] if len(args) > 1 else None))
        gradients = list(given) if isinstance(given, list | tuple) else [given] * len(roots)
        if kwargs.get("inputs") is not None or (func is Tensor.backward and len(args) > 4):
            self._miss("backward was told which inputs to differentiate (inputs=...)")
        for root, gradient in zip(roots, gradients):
            if isinstance(root, Tensor):
                self.losses.append(Loss(self._refer(root), gradient, root.detach()))
        result = func(*args, **kwargs)
        self.left.note()
        return result

    @property
    def raw_norms(self) -> Tensor | None:
        """Norms of the gradients, parameter by parameter, as the last backward left them (0 where there is none)."""
        return self.left.norms

    @property
    def untouched(self) -> bool:
        """Whether what lies in `.grad` is what backward left there: the same objects, to which nobody wrote."""
        return self.left.untouched

    # -- calls of the model ------------------------------------------------------------------------------------------

    def _before_call(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._closed or threading.get_ident() != self._thread:
            return
        self._depth += 1
        if self._depth > 1:
            return
        self._pause()
        self._held: Any = None
        if not torch.is_grad_enabled() or len(self.entries) > LONGEST:
            return
        if self.wrapper is None and not self.calls:
            self.wrapper = called_through(self.own)
        part = self.own.get_submodule(name)
        self._held = (
            tree_map(self._copied, (args, dict(kwargs))),
            Setting.now(self._devices),
            GeneratorStates.now(self.parameters),
            foreign_draws(),
            State(part, self._index, self.moving),
            self._substituted(name, part),
        )

    def _substituted(self, name: str, part: nn.Module) -> dict[str, Any]:
        """Tensors that stand where a trained weight stood when the step began."""
        prefix = f"{name}." if name else ""
        here = {prefix + n: t for n, t in part.named_parameters(remove_duplicate=False)}
        return {
            n.removeprefix(prefix): self._refer(here[n])
            for n, i in self._names.items()
            if n in here and id(here[n]) != i
        }

    def _after_call(self, name: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if self._closed or threading.get_ident() != self._thread:
            return
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        held, self._held = self._held, None
        if held is not None and result is not None:
            self._call(name, held, result)
        self._resume()

    def _call(self, name: str, held: Any, result: Any) -> None:
        refs, setting, noise, draws, state, weights = held
        outs = self._give(result)
        if all(out is None for out in outs):
            return
        self.calls += 1
        if foreign_draws() != draws:
            self._miss("the model draws from Python's or numpy's generator in its forward (or another thread does)")
        buffers, attributes, moved = state.changes(self._after)
        self.moving |= moved
        if moved - buffers.keys():
            self._miss(MOVES.format(", ".join(sorted(moved - buffers.keys())[:3])))
        drawn = noise if noise.moved() else None
        entry = Entry(None, refs[0], refs[1], outs, setting, drawn, "call", name, buffers, attributes)
        entry.versions, entry.weights = [p._version for p in self.parameters], weights
        self.entries.append(entry)

    def weights_moved(self, entries: Sequence[Entry]) -> bool:
        """Whether the weights are no longer those that one of these calls saw."""
        now = [p._version for p in self.parameters]
        return any(entry.module is not None and entry.versions != now for entry in entries)

    def relevant(self) -> tuple[list[Entry], list[Loss]]:
        """The losses that hang on the weights, and the entries that these hang on, in order."""
        return relevant(self.entries, self.losses)


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name in UPDATES


def _modes() -> list[Any]:
    """The function modes of this thread, the innermost last."""
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]
