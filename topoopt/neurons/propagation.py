"""From a model and example inputs to the axes of its parameters: export the graph, walk it once, ask the rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from topoopt.neurons.rules import RULES, Rule, Value
from topoopt.neurons.rules.table import fresh

STATISTICS = ("running_mean", "running_var")
"""Buffers that belong to units."""


@dataclass
class Propagated:
    """What the walk found."""

    values: dict[str, Value]
    """An axis for each dimension of every parameter and buffer that the output depends on, by name."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Operators without a rule, and how often each froze what it touched."""


def propagate(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], extra_rules: Mapping[str, Rule] | None = None
) -> Propagated:
    """Export `model` on example inputs and let every operator speak about the axes it touches.

    The model is left as it was: its modes are put back, and nothing runs on its weights (the export is symbolic).
    """
    with quiet(model):
        program = torch.export.export(model, args, dict(kwargs), strict=False)
    return _Walk(model, program, {**RULES, **(extra_rules or {})}).run()


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and a Hugging Face model that returns no caches and runs experts as one batch; all put back after."""
    modes = [(module, module.training) for module in model.modules()]
    config = getattr(model, "config", None)
    wanted = {"use_cache": False, "output_hidden_states": False, "output_attentions": False}
    wanted["_experts_implementation_internal"] = "batched_mm"  # type: ignore[assignment]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    saved = []
    try:
        for module, _ in modes:
            module.training = False
        for one in configs.values() if config is not None else ():
            for name, value in wanted.items():
                if getattr(one, name, None) is not None:
                    saved.append((one, name, getattr(one, name)))
                    setattr(one, name, value)
        yield
    finally:
        for one, name, value in reversed(saved):
            setattr(one, name, value)
        for module, training in modes:
            module.training = training


class _Walk:
    """One pass through the graph, from inputs to outputs."""

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram, rules: Mapping[str, Rule]) -> None:
        self._graph = program.graph
        self._rules = rules
        self._canonical = _canonical_names(model)
        self._tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._env: dict[fx.Node, Any] = {}
        self._found = Propagated({})

    def run(self) -> Propagated:
        live = _live_nodes(self._graph)
        for node in self._graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self._env[node] = None
            elif node.op == "call_function" and node in live:
                self._env[node] = self._call(node)
            elif node.op == "output":
                self._freeze_all(node.args, "an output of the model")
        return self._found

    def _placeholder(self, node: fx.Node) -> Value | None:
        shape = _shapes(node)
        if not isinstance(shape, list):
            return None
        spec = self._specs[node.name]
        kind, target = spec.kind.name, spec.target or node.name
        if kind == "PARAMETER" or (kind == "BUFFER" and target.rsplit(".", 1)[-1] in STATISTICS):
            name = self._canonical.get(target, target)
            return self._found.values.setdefault(name, Value(fresh(shape), source=name))
        if kind == "USER_INPUT":
            return Value(fresh(shape, "an input of the model"))
        uniform = _is_uniform(self._tensors.get(target))
        return Value(fresh(shape, None if uniform else f"the constant {target}"), uniform=uniform)

    def _call(self, node: fx.Node) -> Any:
        if getattr(node.target, "__name__", "") == "getitem":
            return self._getitem(node)
        name = _operator(node.target)
        shapes = _shapes(node)
        args = fx.node.map_aggregate(node.args, self._look_up)
        kwargs = fx.node.map_aggregate(node.kwargs, self._look_up)
        if shapes is None:
            return None
        rule = self._rules.get(name)
        if rule is not None:
            try:
                result = rule(shapes, *args, **kwargs)  # type: ignore[misc]
                if _fits(result, shapes):
                    return result
                problem = "does not fit"
            except Exception as error:  # a rule that meets a form of its operator it does not know
                problem = f"{type(error).__name__}: {error}"
            name = f"{name} ({problem})"
        return self._give_up(node, name, shapes)

    def _give_up(self, node: fx.Node, name: str, shapes: Any) -> Any:
        self._found.unknown[name] = self._found.unknown.get(name, 0) + 1
        reason = f"the operator {name} has no rule"
        self._freeze_all((node.args, node.kwargs), reason)
        if shapes and isinstance(shapes[0], list):
            return [Value(fresh(shape, reason)) for shape in shapes]
        return Value(fresh(shapes, reason))

    def _getitem(self, node: fx.Node) -> Any:
        source, index = node.args
        whole = self._env.get(source)  # type: ignore[arg-type]
        return whole[index] if isinstance(whole, list | tuple) else None  # type: ignore[index]

    def _look_up(self, argument: Any) -> Any:
        return self._env.get(argument) if isinstance(argument, fx.Node) else argument

    def _freeze_all(self, arguments: Any, reason: str) -> None:
        def freeze(argument: Any) -> Any:
            value = self._env.get(argument) if isinstance(argument, fx.Node) else None
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, Value) and not one.uniform:
                    for axis in one.dims:
                        axis.freeze(reason)
            return argument

        fx.node.map_aggregate(arguments, freeze)


def _operator(target: Any) -> str:
    """`linear` of aten.linear.default; an in-place operator's underscore is dropped."""
    name = getattr(target, "_schema", None)
    text = name.name.split("::")[-1] if name is not None else getattr(target, "__name__", str(target))
    return text[:-1] if text.endswith("_") and not text.endswith("__") else text


def _shapes(node: fx.Node) -> Any:
    """Shape of a node's result as a list of ints, a list of shapes for several results, None for no tensor."""

    def shape(value: Any) -> Any:
        return [int(size) for size in value.shape] if isinstance(value, Tensor) else None

    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        shapes = [shape(one) for one in value]
        return [one for one in shapes if one is not None] or None
    return shape(value)


def _fits(result: Any, shapes: Any) -> bool:
    if isinstance(result, Value):
        return not (shapes and isinstance(shapes[0], list)) and result.shape == list(shapes)
    if isinstance(result, list | tuple):
        return len(result) == len(shapes) and all(_fits(one, shape) for one, shape in zip(result, shapes))
    return False


def _live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes on which an output depends; the others (dead code of the export) must not freeze anything."""
    live: set[fx.Node] = set()
    queue = [node for node in graph.nodes if node.op == "output"]
    while queue:
        node = queue.pop()
        if node not in live:
            live.add(node)
            queue.extend(node.all_input_nodes)
    return live


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tied parameter -> the first one."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _is_uniform(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.numel() > 1 << 22:
        return isinstance(tensor, Tensor) and tensor.numel() == 1
    return tensor.numel() <= 1 or bool((tensor == tensor.flatten()[0]).all())
