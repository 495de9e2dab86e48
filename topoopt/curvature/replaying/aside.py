"""What an evaluation of the user's own code may change, put back when it is over: weights, gradients, modes, buffers, noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topoopt.curvature.noise import GeneratorStates, Replaying
from topoopt.modules import own_hooks


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


class Watch(Replaying):
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


@contextmanager
def aside(parameters: Sequence[Tensor], modules: Sequence[nn.Module]) -> Iterator[None]:
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


@contextmanager
def buffers_aside(modules: Sequence[nn.Module]) -> Iterator[None]:
    """All buffers as they were, for evaluations that cannot be watched."""
    saved = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
