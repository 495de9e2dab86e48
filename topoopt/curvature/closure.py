"""A loss that the user gave, as a function of the weights: whatever its evaluation changes is put back, and noise is held.

A closure runs the user's own code on live objects, which the tape does not; so it is watched. A dispatch mode on this thread
sees every tensor that the evaluation writes to without having made it (running statistics of any network, codebooks, momentum
encoders) and puts its value back; it also gives random operations a generator of their own, so that the user's are not touched.
`.grad`, modes and attributes of the modules that the closure can reach are kept aside. Taking an optimizer's step inside is
refused. Weights are moved in place for the time of one evaluation.
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from topoopt.curvature.noise import GeneratorStates, Replaying, put_back
from topoopt.errors import MeasurementError
from topoopt.modules import own_hooks
from topoopt.sharding import is_sharded, reshard

Loss = Callable[[], Any]
SAME = 1e-6
"""Relative difference of two evaluations that are the same."""
EVALUATING = "_topoopt_evaluating"
"""Set on an optimizer while a loss is evaluated for it: its step is refused meanwhile."""


class Closure:
    """The gradient of `loss()` with respect to `parameters`; see `hessian.Gradients`.

    Args:
        loss: runs a forward and returns a scalar tensor, or an object with `.loss`.
        parameters: the optimizer's.
        model: its batch size is looked at, and its data-parallel wrapper told not to expect a backward pass.
        seed: of the noise, which is the same in every evaluation.
    """

    def __init__(self, loss: Loss, parameters: Sequence[Tensor], model: nn.Module | None = None, seed: int = 0) -> None:
        self._loss, self.parameters, self.model = loss, list(parameters), model
        self.size = 0
        self.weight_types: set[torch.dtype] = set()
        """Types of sharded weights as the forward sees them: FSDP2 may hand out other ones than it keeps."""
        self.low_precision = False
        self.notes: tuple[str, ...] = ()
        self._through_grad = False
        self._states = _seeded(parameters, seed)
        reach = _reach(loss)
        self._modules = list(
            {id(m): m for root in (model, *reach) if isinstance(root, nn.Module) for m in root.modules()}.values()
        )
        self._optimizers = [o for o in reach if isinstance(o, Optimizer)]
        self._compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in self._modules)
        self._foreign = _Foreign()
        self._given: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._watches: list[_Watch] = []

    def through_grad(self) -> Closure:
        """The same by what backward leaves in `.grad`: for weights that are not in the graph themselves."""
        self._through_grad = True
        return self

    @contextmanager
    def running(self) -> Iterator[None]:
        """All evaluations of one estimate happen inside: what they change is put back at its end at the latest."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.callback(self._put_generators_back)
            stack.callback(self._put_back)
            if self.model is not None:
                stack.enter_context(self._seen())
                for module in self.model.modules():
                    if hasattr(module, "require_backward_grad_sync"):
                        stack.enter_context(module.no_sync())  # type: ignore[operator]
            yield

    def settle(self, anywhere: Callable[[bool], bool] = bool) -> None:
        """Find out, once, whether two evaluations at the same weights are the same; hold what makes them differ.

        Costs two forwards where Python's or numpy's generators moved and other threads run, else nothing. `anywhere` says
        whether a flag is set on any rank: all of them evaluate, and hold, or none, since an evaluation may hold collectives.
        """
        if not anywhere(self._foreign.moved and not self._foreign.held):
            return
        if anywhere(self.differs() > SAME):
            self._foreign.hold()
            self.notes = (
                *self.notes,
                "the loss draws from Python's or numpy's generator, which is put back after each evaluation",
            )

    def gradient(self, point: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradient, the weights at `point` for as long as it takes."""
        with moved(self.parameters, point), self._guarded():
            loss = self._evaluate()
            return loss.detach(), list(self._differentiate(loss))

    def graph(self) -> tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor]]:
        """As `hessian.Gradients` has it; the leaves are the live weights."""
        with self._guarded():
            loss = self._evaluate()
            grads = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        return loss, grads, self.parameters

    def differs(self) -> float:
        """Relative difference of two evaluations at the same weights: 0 for a function of the weights."""
        with torch.enable_grad():
            values = []
            for _ in range(2):
                with self._guarded():
                    values.append(float(self._evaluate().detach()))
        return abs(values[0] - values[1]) / max(abs(values[0]), 1e-12)

    def _put_generators_back(self) -> None:
        for generator, state in self._given.values():
            generator.set_state(state)
        self._given.clear()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The weights' own hooks do not see what is differentiated inside."""
        hooks = [(p, p._backward_hooks) for p in self.parameters if p._backward_hooks]
        for p, _ in hooks:
            p._backward_hooks = None
        try:
            yield
        finally:
            for p, held in hooks:
                p._backward_hooks = held

    # -- one evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self) -> Tensor:
        if self.model is not None and self._through_grad:
            reshard(self.model)
        result = self._loss()
        loss = result if isinstance(result, Tensor) else getattr(result, "loss", result)
        if isinstance(loss, dict):
            loss = loss.get("loss")
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise MeasurementError(
                f"loss() returned a {type(result).__name__}: return a scalar tensor or an object with .loss"
            )
        if not loss.requires_grad:
            raise MeasurementError(
                "loss() has no graph to the weights: run the forward inside it, without torch.no_grad()"
            )
        return loss.reshape(())

    def _differentiate(self, loss: Tensor) -> Sequence[Tensor | None]:
        if not self._through_grad:
            return torch.autograd.grad(loss, self.parameters, allow_unused=True)
        loss.backward()  # `.grad` is set aside around the evaluation
        return [p.grad for p in self.parameters]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self._put_back()
        with ExitStack() as stack:
            stack.enter_context(_aside(self.parameters, self._modules))
            stack.enter_context(self._foreign.evaluation())
            for optimizer in self._optimizers:
                setattr(optimizer, EVALUATING, True)
                stack.callback(optimizer.__dict__.pop, EVALUATING, None)
            if self._compiled or any(is_sharded(p) for p in self.parameters):
                # A dispatch mode would have compiled code compiled anew, and DTensors dispatch by themselves.
                stack.enter_context(put_back(self._states))
                stack.enter_context(_buffers(self._modules))
            else:
                watch = stack.enter_context(_Watch(self._states, self._given))
                stack.callback(self._note, watch)
            yield

    def _note(self, watch: _Watch) -> None:
        self.low_precision = self.low_precision or watch.low_precision
        self._watches.append(watch)  # put back later: what a graph needs may be among it

    def _put_back(self) -> None:
        """Undo what earlier evaluations have written, the latest first."""
        while self._watches:
            self._watches.pop().put_back()

    @contextmanager
    def _seen(self) -> Iterator[None]:
        """The batch's size, and the types in which shards are handed out."""
        assert self.model is not None

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim), None)
            self.size = self.size if first is None else int(first.shape[0])

        def types(module: nn.Module, args: Any) -> None:
            self.weight_types.update(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())

        owners = [m for m in self.model.modules() if any(is_sharded(p) for p in m.parameters(recurse=False))]
        with ExitStack() as stack:
            hook: Any = torch.compiler.disable(see)
            stack.callback(self.model.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for module in owners:
                stack.callback(module.register_forward_pre_hook(torch.compiler.disable(types)).remove)  # type: ignore[arg-type]
            yield


class moved:
    """The weights at `point` inside the block (None: as they stand), and exactly what they were after it, whatever is raised."""

    def __init__(self, parameters: Sequence[Tensor], point: Sequence[Tensor] | None) -> None:
        self._parameters, self._point = parameters, point
        self._saved: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        try:
            for parameter, value in zip(self._parameters, self._point or ()):
                self._saved.append((parameter, parameter.detach().clone()))
                parameter.data.copy_(value)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        while self._saved:
            parameter, value = self._saved.pop()
            parameter.data.copy_(value)


class _Watch(Replaying):
    """Gives noise its own generators, and remembers what is written to that was not made here.

    A generator that the loss itself gives (`generator=`) begins each evaluation where it stood at the first.
    """

    def __init__(self, states: GeneratorStates, given: dict[int, tuple[torch.Generator, Tensor]]) -> None:
        super().__init__(states)
        self._given, self._begun = given, set[int]()
        self.low_precision = self._over = False
        self._born: set[int] = set()
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._over:
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable or "batch_norm" in str(func):
            self._keep_what_is_written(func, args, kwargs or {})
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, torch.Generator) and id(generator) not in self._begun:
            self._begun.add(id(generator))
            generator.set_state(self._given.setdefault(id(generator), (generator, generator.get_state()))[1])
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = {a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                if (place := leaf.untyped_storage()._cdata) not in given:  # a view of what was there is not made here
                    self._born.add(place)
                self.low_precision = self.low_precision or leaf.dtype in (torch.bfloat16, torch.float16)
        return result

    def _keep_what_is_written(self, func: Any, args: Any, kwargs: Any) -> None:
        for i, spec in enumerate(func._schema.arguments):
            writes = spec.alias_info is not None and spec.alias_info.is_write
            if not (writes or spec.name in ("running_mean", "running_var")):
                continue
            value = args[i] if i < len(args) else kwargs.get(spec.name)
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._born:
                    self._written.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    def put_back(self) -> None:
        """Undo the writes; the evaluation is over."""
        self._over = True
        for tensor, value in self._written.values():
            tensor.data.copy_(value)
        self._written.clear()


def _reach(loss: Loss) -> list[Any]:
    """Modules and optimizers that a closure can name: in its cells, its globals, and one attribute further."""
    target: Any = getattr(loss, "__func__", loss)
    found: list[Any] = [getattr(loss, "__self__", None)]
    try:
        names = inspect.getclosurevars(target)
        found += [*names.nonlocals.values(), *names.globals.values()]
    except (TypeError, ValueError):
        found += list(vars(loss).values()) if hasattr(loss, "__dict__") else []
    deeper = [
        v
        for one in found
        if hasattr(one, "__dict__") and not isinstance(one, nn.Module | type)
        for v in vars(one).values()
    ]
    return [one for one in (*found, *deeper) if isinstance(one, nn.Module | Optimizer)]


@contextmanager
def _aside(parameters: Sequence[Tensor], modules: Sequence[nn.Module]) -> Iterator[None]:
    """`.grad`, modes, plain attributes and the dictionaries of buffers as they were; the user's hooks see nothing of it."""
    tensors = {id(p): p for p in (*parameters, *(p for m in modules for p in m.parameters(recurse=False)))}
    grads = [(p, p.grad, p._backward_hooks) for p in tensors.values()]
    held = [(m, dict(vars(m)), dict(m._buffers)) for m in modules]
    try:
        for p, _, hooks in grads:
            p.grad = None
            if hooks:
                p._backward_hooks = None
        for module in modules:
            for name, own in own_hooks(module).items():
                vars(module)[name] = own
        yield
    finally:
        for p, grad, hooks in grads:
            p.grad = grad
            if hooks:
                p._backward_hooks = hooks
        for module, attributes, buffers in held:
            _as_it_was(vars(module), attributes)
            _as_it_was(module._buffers, buffers)


def _as_it_was(now: dict[str, Any], before: dict[str, Any]) -> None:
    if len(now) == len(before) and all(now.get(key, now) is value for key, value in before.items()):
        return
    for key in now.keys() - before.keys():
        del now[key]
    now.update(before)


def _seeded(parameters: Sequence[Tensor], seed: int) -> GeneratorStates:
    """States of generators that were seeded alike, for the devices of the weights."""
    states = []
    for device, _ in GeneratorStates.now(parameters).states:
        states.append((device, torch.Generator(device).manual_seed(seed).get_state()))
    return GeneratorStates(tuple(states))


class _Foreign:
    """Python's and numpy's generators, at one place for every evaluation, and put back.

    Where other threads run they may be what draws; the generators are then left alone, unless evaluations differ for them.
    """

    def __init__(self) -> None:
        self._start = self._now()
        self.held = threading.active_count() == 1
        self.moved = False

    def hold(self) -> None:
        """They are what the loss draws from: from now on each evaluation does from their start, where they are put back."""
        self.held = True
        self._put(self._start)

    @staticmethod
    def _now() -> tuple[Any, Any]:
        return random.getstate(), np.random.get_state()  # noqa: NPY002 -- the user's legacy state is kept

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """One evaluation, from the start's place when they are held."""
        theirs = self._now()
        if self.held:
            self._put(self._start)
        try:
            yield
        finally:
            here = self._now()
            self.moved = self.moved or here[0] != theirs[0] or any(map(_differ, here[1], theirs[1]))
            if self.held:
                self._put(theirs)

    @staticmethod
    def _put(states: tuple[Any, Any]) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _differ(a: Any, b: Any) -> bool:
    return not np.array_equal(a, b)


@contextmanager
def _buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    saved = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
