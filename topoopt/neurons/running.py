"""How a copy is run so that runs can be compared and nothing outside of it is touched.

Every number comes in one precision, random numbers come from a generator of the run's own, and what the copy holds is as
before after each run. All of it belongs to this thread: neither the default dtype nor any generator of the process moves,
for no other thread and not for a moment. What cannot be kept apart is refused before it happens: draws from Python's and
numpy's generators, seeding, and modules outside the copy.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.modules import module as torch_module
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _pop_mode, _push_mode

from topoopt.neurons.watching import PYTHONS, NotApart, guarded

Call = Callable[..., Any]
"""What is done with a module: `call(module, *args, **kwargs)`; its result is the output that is compared."""


def run(model: nn.Module, call: Call | str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a copy by its `__call__`, by a method's name, or by a function that is given the copy."""
    if call is None:
        return model(*args, **kwargs)
    return getattr(model, call)(*args, **kwargs) if isinstance(call, str) else call(model, *args, **kwargs)


def call_parts(model: nn.Module, calls: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Call parts of a model one after the other: (submodule's name, method's name, args, kwargs) each; for `call=`.

    For models whose parts are called directly: `discover(model, calls, call=call_parts)`. The results are all outputs.
    """
    results = []
    for name, method, args, kwargs in calls:
        part = model.get_submodule(name)
        results.append(run(part, None if method in ("forward", "__call__") else method, args, kwargs))
    return results


@contextmanager
def alone() -> Iterator[None]:
    """Without the modes that the user has set in this thread: they neither see what is done here nor change it."""
    with ExitStack() as stack:
        for _ in range(_len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def apart(model: nn.Module, dtype: torch.dtype | None, *, watched: bool = True) -> Iterator[None]:
    """Run a copy apart from the process, all floating numbers in `dtype` and on the host (None: as and where they come).

    `watched=False` is for a run that is known to call what a watched one has called.

    Raises:
        NotApart: when what is run reaches for something that is not the copy's.
    """
    with alone(), ExitStack() as stack:
        kept = stack.enter_context(_kept(model))
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            for module in model.modules():
                vars(module)["_call_impl"] = types.MethodType(_called_by_its_own_hooks, module)
        stack.enter_context(Numbers(dtype))
        if watched:
            stack.enter_context(guarded(model, kept))
        yield


class ThreadMode(TorchDispatchMode):
    """A dispatch mode of this thread alone: torch's own also sets flags that compiled code in other threads reads."""

    def __enter__(self) -> Any:
        _push_mode(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _pop_mode()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; the wrapper would cost more than the handler


class Numbers(ThreadMode):
    """Floating tensors in one precision, on the host, whatever a model casts and sends them to; random ones from a generator
    of its own.

    The precision keeps norms and softmax in float32 from blurring a comparison in float64, and stands for a default dtype;
    the host is where a copy in that precision lies whole, though its model be spread over devices and send what it makes
    from one to the next; the generator makes two runs draw the same numbers.
    """

    def __init__(self, dtype: torch.dtype | None, seed: int = 0) -> None:
        super().__init__()
        self._seed, self._generators, self._on_host = seed, dict[torch.device, torch.Generator](), dtype is not None
        size = dtype.itemsize if dtype else 0
        narrow = [d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16) if d.itemsize < size]
        self._wide: dict[torch.dtype, torch.dtype] = {d: dtype for d in narrow if dtype}
        self._wide |= {d.to_complex(): dtype.to_complex() for d in narrow if dtype and d is not torch.bfloat16}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.view.dtype:  # the bits of other numbers
            return func(*args, **kwargs)
        if self._on_host and kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if kwargs.get("dtype") in self._wide:
            kwargs = {**kwargs, "dtype": self._wide[kwargs["dtype"]]}
        if not func._schema.is_mutable:
            args = [self._widened(arg) for arg in args]
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        return self._widened(self._draw(func, args, kwargs) if drawn else func(*args, **kwargs))

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._wide[value.dtype]) if value.dtype in self._wide else value
        if isinstance(value, tuple | list) and any(isinstance(one, Tensor) for one in value):
            return type(value)(map(self._widened, value))
        return value

    def _draw(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a random operator with this run's generator."""
        device = next((a.device for a in args if isinstance(a, Tensor)), kwargs.get("device"))
        generator = self._generator(torch.device(device or "cpu"))
        if generator is None:
            return func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args)) | kwargs
        if "generator" in names:
            return func(**given | {"generator": generator})
        other = _OTHER.get(func.overloadpacket._qualified_op_name.split("::")[-1])
        if other is not None:
            return other(given, generator)
        packet, name = func.overloadpacket, func._overloadname
        seeded = "generator" if name == "default" else f"{name}_generator"
        if seeded in packet.overloads():
            return getattr(packet, seeded)(**given, generator=generator)
        if not any(given.get(name) for name in ("dropout_p", "dropout", "p")):  # attention without dropout
            return func(*args, **kwargs)
        raise NotApart(f"running the model draws random numbers by {func}, which takes no generator of ours")

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if device.type == "meta":
            return None
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _like(draw: Callable[..., Tensor]) -> Callable[[dict[str, Any], torch.Generator], Tensor]:
    def drawn(given: dict[str, Any], generator: torch.Generator) -> Tensor:
        x = given["self"]
        bounds = [given[name] for name in ("low", "high") if name in given]
        dtype = given.get("dtype") or x.dtype
        return draw(*bounds, size=x.shape, dtype=dtype, device=given.get("device") or x.device, generator=generator)

    return drawn


def _dropped(given: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, kept = given["input"], 1.0 - given["p"]
    if not given["train"]:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) < kept
    return x * mask / max(kept, 1e-30), mask


_OTHER = {
    "rand_like": _like(torch.rand),
    "randn_like": _like(torch.randn),
    "randint_like": _like(lambda *bounds, **how: torch.randint(*([0, *bounds][-2:]), **how)),
    "native_dropout": _dropped,
}


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, Any]]:
    """What modules hold is put back after a run: attributes, plain containers and generators, buffers' contents.

    Yields the Python and numpy generators that are the copy's own, by id.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    generators: dict[int, Any] = {}
    for module, attributes, _ in held:
        fresh = {k: _fresh(v, generators) for k, v in attributes.items() if k not in _STRUCTURE}
        vars(module).update(fresh)
    try:
        yield generators
    finally:
        for module, attributes, buffers in held:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, content in contents:
                buffer.copy_(content)


_STRUCTURE = {*vars(nn.Module()), "_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"}
"""Attributes that make a module one; their contents are looked after by name."""


def _fresh(value: Any, generators: dict[int, Any]) -> Any:
    """The same value for one run, where the run could change it in place."""
    if type(value) is list:
        return [_fresh(one, generators) for one in value]
    if type(value) is dict:
        return {key: _fresh(one, generators) for key, one in value.items()}
    if type(value) is set:
        return set(value)
    if isinstance(value, PYTHONS):
        fresh = copy.deepcopy(value)
        generators[id(fresh)] = fresh
        return fresh
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return value


def _called_by_its_own_hooks(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A module's call without the hooks that are registered for all modules."""
    for key, hook in module._forward_pre_hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(module, args, kwargs) or (args, kwargs)
        else:
            changed = hook(module, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    result = module.forward(*args, **kwargs)
    for key, hook in module._forward_hooks.items():
        more = (kwargs,) if key in module._forward_hooks_with_kwargs else ()
        changed = hook(module, args, *more, result)
        result = result if changed is None else changed
    return result
