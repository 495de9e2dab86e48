"""The shadow: the user's step at other weights, replayed from its tape on a copy of the model.

The copy has no hooks, attributes of its own, and no weights: those of the moment are put into it, as are buffers at their
values before the user's own call. Nothing of the user's is run, moved or written to. Replayed at the weights themselves the
step must give the gradient that the user's own gave: that is the check.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from topoopt.curvature.noise import Replaying, put_back
from topoopt.curvature.taping.calls import nothing
from topoopt.curvature.taping.entries import Entry, Kept, Loss, Slot, Weight, tensors_in
from topoopt.curvature.taping.tape import MOVES, Tape
from topoopt.errors import MeasurementError
from topoopt.modules import COMPILED, bare_copy, named_weights


class Shadow:
    """A taped step as a function of the weights: its losses, and the gradient of what `backward` was called on.

    Holds what the tape refers to (the batch, no graph) until it is dropped.

    Raises:
        MeasurementError: when the tape cannot stand for the step, with what stands in the way.
    """

    def __init__(self, tape: Tape) -> None:
        self.entries, self._losses = tape.relevant()
        refuse(tape, self.entries, self._losses)
        self.parameters = tape.parameters
        self.module: nn.Module | None = None
        self._parts: dict[str, nn.Module] = {}
        self._moving = tape.moving
        self.names: dict[str, int] = {}
        self.others: dict[str, Tensor] = {}
        if any(entry.module is not None for entry in self.entries):
            self._copy(tape)
        self.size = _batch_size(self.entries)
        self.low_precision = any(entry.setting.low_precision for entry in self.entries)
        self.noisy = any(entry.noise is not None for entry in self.entries)
        self.replays = 0
        self.watch: Callable[[nn.Module], AbstractContextManager[None]] | None = None
        """Looks on at the next replay's calls of the copy."""
        self._globally = False
        self.kinks: frozenset[str] = frozenset()
        """Kinds of operations with kinks in the step's graph, seen at its first replay."""

    def _copy(self, tape: Tape) -> None:
        try:
            self.module = bare_copy(tape.own)
        except Exception as error:
            raise MeasurementError(f"the model cannot be copied ({type(error).__name__}: {error})") from error
        for part in self.module.modules():  # the watch over this very step came along as a hook that does nothing
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                for key in [k for k, hook in hooks.items() if hook is nothing]:
                    del hooks[key]
        index = {id(p): i for i, p in enumerate(self.parameters)}
        self.names = {n: index[i] for i, names in named_weights(tape.own).items() if i in index for n in names}
        others = [*tape.own.named_parameters(remove_duplicate=False), *tape.own.named_buffers(remove_duplicate=False)]
        self.others = {n.replace(COMPILED, ""): t.detach() for n, t in others if id(t) not in index}

    @property
    def value(self) -> Tensor:
        """What the step's losses were, added up, in the user's own forward (a device scalar)."""
        parts = [
            loss.value.float().sum() if loss.gradient is None else (loss.value * loss.gradient).float().sum()
            for loss in self._losses
        ]
        return torch.stack([p.to(parts[0].device) for p in parts]).sum()

    def gradient(self, point: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Losses added up and gradient at the weights `point` (at the weights as they stand)."""
        value, roots, weights, leaves = self._replay(point)
        torch.autograd.backward(roots, weights)  # reentrant checkpoints know no other way; the leaves are our own
        return value, [leaf.grad for leaf in leaves]

    def graph(self) -> tuple[Tensor, Sequence[Tensor | None], list[Tensor]]:
        """(value, gradient with a graph of its own, the leaves that it hangs on), at the weights as they stand."""
        value, roots, weights, leaves = self._replay(None)
        grads = torch.autograd.grad(roots, leaves, weights, create_graph=True, allow_unused=True)
        return value, grads, leaves

    # -- one replay --------------------------------------------------------------------------------------------------

    def _replay(self, point: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor]]:
        self.replays += 1
        leaves = [p.detach().requires_grad_() for p in (self.parameters if point is None else point)]
        run = _Run(self, leaves)
        with self._looked_after():
            for entry in self.entries:
                run.take(entry)
        roots, weights = [], []
        for loss in self._losses:
            root = run.value(loss.of)
            if root.requires_grad:
                roots.append(root)
                weights.append(loss.gradient if loss.gradient is not None else None)
        if not roots:
            raise MeasurementError("replayed, the losses do not depend on the weights")
        if self.replays == 1:
            self.kinks = _kinks(roots)
        total = sum((r.detach() * (1.0 if w is None else w)).float().sum() for r, w in zip(roots, weights))
        assert isinstance(total, Tensor)
        return total, roots, weights, leaves

    @contextmanager
    def _looked_after(self) -> Iterator[None]:
        """At the first replay: nothing of the user's may be written to, not even past autograd (`.data`)."""
        live = {} if self.module is None else {n: self.parameters[i] for n, i in self.names.items()} | self.others
        if self.replays > 1 or not live:
            yield
            return
        with _Untouched(live) as guard:
            yield
        trained, others = guard.written & self.names.keys(), guard.written & self.others.keys()
        prefixes = {f"{entry.module}." for entry in self.entries if entry.module}
        self._moving |= {next((n.removeprefix(p) for p in prefixes if n.startswith(p)), n) for n in others}
        if others:
            raise MeasurementError(MOVES.format(", ".join(sorted(others)[:3])))
        if trained:
            raise MeasurementError(f"the forward writes to weights that are trained ({', '.join(sorted(trained)[:3])})")

    def draw_globally(self) -> None:
        """From now on noise comes from the default generators, put where they stood and put back after."""
        self._globally = True

    def place(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors where the copy keeps its parameters and buffers."""
        assert self.module is not None
        for name, tensor in tensors.items():
            owner, _, last = name.rpartition(".")
            part = self._parts.get(owner)
            if part is None:
                part = self._parts[owner] = self.module.get_submodule(owner)
            held = part._parameters if last in part._parameters else part._buffers
            held[last] = tensor  # type: ignore[assignment]
            if last in getattr(part, "_flat_weights_names", ()):  # recurrent layers keep a list beside it
                part._flat_weights[part._flat_weights_names.index(last)] = tensor  # type: ignore[index, union-attr]

    def around(self, entry: Entry) -> AbstractContextManager[Any]:
        """The noise of an entry."""
        if entry.noise is None:
            return nullcontext()
        return put_back(entry.noise) if self._globally else Replaying(entry.noise)


class _Run:
    """One replay: what its entries made so far."""

    def __init__(self, shadow: Shadow, leaves: list[Tensor]) -> None:
        self._shadow, self._leaves = shadow, leaves
        self._made: dict[int, Tensor] = {}
        self._aliases: dict[int, Tensor] = {}
        self._placed = False

    def value(self, ref: Any, *, fresh: bool = False) -> Any:
        if isinstance(ref, Weight):
            return self._leaves[ref.index]
        if isinstance(ref, Slot):
            return self._made[ref.index]
        if not isinstance(ref, Kept):
            return ref
        if fresh or ref.own:
            found = ref.tensor.detach().clone()
            return found.requires_grad_() if ref.tensor.requires_grad else found
        if id(ref.tensor) not in self._aliases:  # another network's weight must not be given a gradient
            alias = ref.tensor.detach()
            inner = ref.tensor.requires_grad and not isinstance(ref.tensor, nn.Parameter)
            self._aliases[id(ref.tensor)] = alias.requires_grad_() if inner else alias
        return self._aliases[id(ref.tensor)]

    def take(self, entry: Entry) -> None:
        with self._shadow.around(entry), entry.setting.restored():
            args, kwargs = tree_map(self.value, (entry.args, entry.kwargs))
            if entry.module is not None:
                result = self._call(entry, args, kwargs)
            else:
                assert entry.func is not None
                result = entry.func(*args, **kwargs)
                target = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("out")
                if len(entry.outs) > len(tensors_in(result)):
                    result = (result, target)
        for out, tensor in zip(entry.outs, tensors_in(result)):
            if out is not None:
                self._made[out] = tensor

    def _call(self, entry: Entry, args: Any, kwargs: Any) -> Any:
        shadow = self._shadow
        assert shadow.module is not None
        part = shadow.module.get_submodule(entry.module or "")
        prefix = f"{entry.module}." if entry.module else ""
        if not self._placed:
            shadow.place({n: self._leaves[i] for n, i in shadow.names.items()} | shadow.others)
            self._placed = True
        # In place until the next replay: activation checkpointing calls the copy again in backward.
        shadow.place({prefix + n.replace(COMPILED, ""): b.clone() for n, b in entry.buffers.items()})
        shadow.place({prefix + n.replace(COMPILED, ""): self.value(ref) for n, ref in entry.weights.items()})
        for (name, key), value in entry.attributes.items():
            _set(part.get_submodule(name.replace(COMPILED, "")), key, value)
        with nullcontext() if shadow.watch is None else shadow.watch(part):
            result = part(*args, **kwargs)
        if entry.weights:
            shadow.place({n: self._leaves[i] for n, i in shadow.names.items()})
        return result


class _Untouched(TorchDispatchMode):
    """Lets operations write to copies where they would write to one of these tensors, and remembers which."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.written: set[str] = set()
        plain = {n: t for n, t in tensors.items() if not hasattr(t, "full_tensor") and t.device.type != "meta"}
        self._names: dict[int, list[str]] = {}
        for name, tensor in plain.items():
            self._names.setdefault(tensor.untyped_storage()._cdata, []).append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not func._schema.is_mutable:
            return func(*args, **kwargs)
        args = list(args)
        for i, spec in enumerate(func._schema.arguments):
            if spec.alias_info is None or not spec.alias_info.is_write:
                continue
            if i < len(args):
                args[i] = tree_map(self._or_a_copy, args[i])
            elif spec.name in kwargs:
                kwargs[spec.name] = tree_map(self._or_a_copy, kwargs[spec.name])
        return func(*args, **kwargs)

    def _or_a_copy(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or hasattr(value, "full_tensor"):
            return value
        names = self._names.get(value.untyped_storage()._cdata)
        if not names:
            return value
        self.written.update(names)
        return value.clone()


KINKED = (
    "ReluBackward",
    "LeakyRelu",
    "Hardtanh",
    "Threshold",
    "Prelu",
    "PreluKernel",
    "MaxPool",
    "AbsBackward",
    "Hardswish",
)
"""Parts of the names of autograd's nodes whose function has kinks, which finite differences see and derivatives do not."""


def _kinks(roots: Sequence[Tensor]) -> frozenset[str]:
    waiting: list[Any] = [root.grad_fn for root in roots]
    seen: set[Any] = set(waiting)
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        name = node.name()
        found |= {kind for kind in KINKED if kind in name}
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        waiting.extend(fresh)
    return frozenset(found)


def _set(module: nn.Module, key: str, value: Any) -> None:
    """An attribute at its value before the call: a container of its own, a tensor that a forward may write to."""
    if type(value) is object:
        module.__dict__.pop(key, None)
    elif isinstance(value, Tensor):
        module.__dict__[key] = value if value.requires_grad else value.clone()
    else:
        module.__dict__[key] = copy.copy(value) if isinstance(value, list | dict | set) else value


def refuse(tape: Tape, entries: Sequence[Entry], losses: Sequence[Loss]) -> None:
    """Raise where the tape cannot stand for the step."""
    if tape.gap:
        raise MeasurementError(f"the step could not be followed: {tape.gap}")
    if not losses:
        raise MeasurementError(_nothing_seen(tape))
    if tape.weights_moved(entries):
        raise MeasurementError("the weights have been written to since the forward: the step's gradient is of others")
    _refuse_changed_values(entries, losses)


def _refuse_changed_values(entries: Sequence[Entry], losses: Sequence[Loss]) -> None:
    for entry in entries:
        for ref in tree_leaves((entry.args, entry.kwargs)):
            if isinstance(ref, Kept) and not ref.intact:
                raise MeasurementError(
                    f"a tensor of shape {tuple(ref.tensor.shape)} that {entry.name} took was written to after it, before the "
                    "step: its value then is not known any more"
                )


def _nothing_seen(tape: Tape) -> str:
    if tape.losses:
        return "no loss that backward was called on depends on the optimizer's parameters, as far as the step was seen"
    if not tape.calls and not tape.entries:
        what = (
            "the optimizer's parameters were not used in a way that could be seen (through the model given as `model`)"
        )
        return f"no forward of the model was seen in this step: {what}"
    return "no call of backward was seen in this step"


def _batch_size(entries: Sequence[Entry]) -> int:
    """First dimension of the first tensor that enters a call, added up over the calls' losses of one step."""
    for entry in entries:
        for ref in tree_leaves((entry.args, entry.kwargs)):
            if isinstance(ref, Kept) and ref.tensor.ndim and (entry.module is not None):
                return int(ref.tensor.shape[0]) * sum(1 for e in entries if e.module == entry.module)
    return 0
