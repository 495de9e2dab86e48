"""A loss that the user gave, as a function of the weights: whatever its evaluation changes is put back, and noise is held.

A closure runs the user's own code on live objects, which the tape does not; so it is watched. A dispatch mode on this thread
sees every tensor that the evaluation writes to without having made it (running statistics of any network, codebooks, momentum
encoders) and puts its value back; it also gives random operations a generator of their own, so that the user's are not touched.
`.grad`, modes and attributes of the modules that the closure can reach are kept aside. Taking an optimizer's step inside is
refused. Weights are moved in place for the time of one evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.curvature.foreign import Foreign
from topoopt.curvature.noise import GeneratorStates, put_back
from topoopt.curvature.replaying.aside import Watch, aside, buffers_aside, moved
from topoopt.errors import MeasurementError
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
        self._foreign = Foreign()
        self._given: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._watches: list[Watch] = []

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
            stack.enter_context(aside(self.parameters, self._modules))
            stack.enter_context(self._foreign.evaluation())
            for optimizer in self._optimizers:
                setattr(optimizer, EVALUATING, True)
                stack.callback(optimizer.__dict__.pop, EVALUATING, None)
            if self._compiled or any(is_sharded(p) for p in self.parameters):
                # A dispatch mode would have compiled code compiled anew, and DTensors dispatch by themselves.
                stack.enter_context(put_back(self._states))
                stack.enter_context(buffers_aside(self._modules))
            else:
                watch = stack.enter_context(Watch(self._states, self._given))
                stack.callback(self._note, watch)
            yield

    def _note(self, watch: Watch) -> None:
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


def _seeded(parameters: Sequence[Tensor], seed: int) -> GeneratorStates:
    """States of generators that were seeded alike, for the devices of the weights."""
    states = []
    for device, _ in GeneratorStates.now(parameters).states:
        states.append((device, torch.Generator(device).manual_seed(seed).get_state()))
    return GeneratorStates(tuple(states))
