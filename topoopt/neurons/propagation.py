"""From a recorded run to the axes of the parameters: walk the graph once and let every operator's rule speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_aggregate

from topoopt.neurons.axes import unify
from topoopt.neurons.group import STATISTICS
from topoopt.neurons.recording import Recording
from topoopt.neurons.rules import RULES, Rule, Value
from topoopt.neurons.rules.table import fresh, tensors

SHORT = 4096
"""Constants up to this many numbers are looked into where they index."""
VIEWS = {
    "view", "reshape", "select", "slice", "narrow", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze",
    "alias", "detach", "unbind", "split", "split_with_sizes", "chunk", "getitem", "diagonal", "flatten",
    "unflatten", "movedim", "as_strided", "view_as", "to", "contiguous",
}  # fmt: skip
COPIES = ("to", "_to_copy", "clone", "contiguous", "dropout", "detach", "alias", "type_as", "float", "identity")
MIXING = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "conv1d",
    "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "lstm", "gru",
    "rnn_tanh", "rnn_relu",
}  # fmt: skip
"""Operators whose results are made of several entries weighted."""
LOOKUPS = ("index", "index_select", "gather")
"""Operators that choose from their first operand: chosen weights are still weights."""


@dataclass
class Propagated:
    """What the walk found."""

    values: dict[str, Value]
    """An axis for each dimension of every parameter and buffer that the output depends on, by name."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Operators without a rule, and how often each froze what it touched."""


def propagate(recording: Recording, extra_rules: Mapping[str, Rule] | None = None) -> Propagated:
    """Let every operator of a recorded run speak about the axes it touches."""
    return _Walk(recording, {**RULES, **(extra_rules or {})}).run()


class _Walk:
    """One pass through the graph, from leaves to outputs."""

    def __init__(self, recording: Recording, rules: Mapping[str, Rule]) -> None:
        self._recording = recording
        self._rules = rules
        self._env: dict[fx.Node, Any] = {}
        self._found = Propagated({})

    def run(self) -> Propagated:
        graph = self._recording.graph
        live, order = _live_nodes(graph, self._recording.read), {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node not in live:
                continue
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._env[node] = self._call(node)
                if _writes(node):
                    self._written(node)
                if _is_residual_sum(node, order):
                    for axis in self._env[node].dims:
                        axis.mark("residual")
            else:
                self._freeze_all(node.args, "an output of the model")
        self._freeze_all(self._recording.read, "its numbers decide what the model's Python does")
        return self._found

    def _written(self, node: fx.Node) -> None:
        """What was written to in place has the result's axes; it, and what it views, is no longer one number everywhere."""
        written = self._look_up(node.args[0])
        result = self._env.get(node)
        if isinstance(written, Value) and isinstance(result, Value):
            for here, came in zip(written.dims, result.dims):
                unify(here, came)
        kept = {id(atom) for axis in written.dims for atom in axis.atoms()} if isinstance(written, Value) else set()
        for base in _viewed(node):
            value = self._env.get(base)
            if not isinstance(value, Value) or not value.uniform:
                continue
            value.uniform = False
            for axis in value.dims:
                if axis.size > 1 and kept.isdisjoint(id(atom) for atom in axis.atoms()):
                    axis.freeze("written to position by position")

    def _placeholder(self, node: fx.Node) -> Value:
        kind, name, tensor = self._recording.leaves[node]
        shape = _shapes(node)
        if kind == "parameter" or (kind == "buffer" and name.rsplit(".", 1)[-1] in STATISTICS):
            return self._found.values.setdefault(name, Value(fresh(shape), source=name, learned=True))
        if kind == "input":
            return Value(fresh(shape, "an input of the model"))
        uniform = _is_uniform(tensor)
        content = tensor if tensor.numel() <= SHORT and not tensor.is_meta else None
        reason = f"the constant {name}" if name else "a constant"
        return Value(fresh(shape, None if uniform else reason), uniform=uniform, content=content)

    def _call(self, node: fx.Node) -> Any:
        if getattr(node.target, "__name__", "") == "getitem":
            return self._getitem(node)
        name = _operator(node.target)
        shapes = _shapes(node)
        args = map_aggregate(node.args, self._look_up)
        kwargs = map_aggregate(node.kwargs, self._look_up)
        if shapes is None:
            return None
        rule = self._rules.get(name)
        if rule is not None:
            try:
                result = rule(shapes, *args, **kwargs)  # type: ignore[misc]
                if _fits(result, shapes):
                    return _with_lineage(name, result, tensors(args, list(kwargs.values())))
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

        map_aggregate(arguments, freeze)


def _operator(target: Any) -> str:
    """`linear` of aten.linear.default; an in-place operator's underscore is dropped."""
    name = getattr(target, "_schema", None)
    text = name.name.split("::")[-1] if name is not None else getattr(target, "__name__", str(target))
    return text[:-1] if text.endswith("_") and not text.endswith("__") else text


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_") and not schema.name.endswith("__")


def _shapes(node: fx.Node) -> Any:
    """Shape of a node's result as a list of ints, a list of shapes for several results, None for no tensor."""
    return node.meta.get("shape")


def _fits(result: Any, shapes: Any) -> bool:
    if isinstance(result, Value):
        return not (shapes and isinstance(shapes[0], list)) and result.shape == list(shapes)
    if isinstance(result, list | tuple):
        return len(result) == len(shapes) and all(_fits(one, shape) for one, shape in zip(result, shapes))
    return False


def _with_lineage(name: str, result: Any, operands: list[Value]) -> Any:
    """Note on results whether they are made of weights alone."""
    made_of = operands[:1] if name in LOOKUPS else [one for one in operands if not one.uniform]
    learned = name not in MIXING and bool(made_of) and all(one.learned for one in made_of)
    for value in result if isinstance(result, list | tuple) else [result]:
        value.learned = learned
    return result


def _is_residual_sum(node: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether a sum is x + f(x), where f is no mere function of the entries: one operand was mixed from the other."""
    operands = [_origin(argument) for argument in node.args if isinstance(argument, fx.Node)]
    if _operator(node.target) not in ("add", "sub") or len(operands) != 2:
        return False
    older, younger = sorted(operands, key=lambda operand: order[operand])
    if any(_shapes(operand) != _shapes(node) for operand in operands):
        return False
    seen: set[tuple[fx.Node, bool]] = {(younger, False)}
    queue = list(seen)
    while queue:
        current, mixed = queue.pop()
        mixed = mixed or _operator(current.target) in MIXING
        for source in current.all_input_nodes:
            if source is older and mixed:
                return True
            if order[source] > order[older] and (source, mixed) not in seen:
                seen.add((source, mixed))
                queue.append((source, mixed))
    return False


def _origin(node: fx.Node) -> fx.Node:
    """What a chain of copies and casts copies."""
    while node.op == "call_function" and _operator(node.target) in COPIES:
        node = node.all_input_nodes[0]
    return node


def _live_nodes(graph: fx.Graph, read: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes on which an output depends, through values, writes or Python; dead code must not freeze anything."""
    live: set[fx.Node] = set()
    queue = [*read, *(node for node in graph.nodes if node.op == "output")]
    writers = [node for node in graph.nodes if node.op == "call_function" and _writes(node)]
    while queue:
        node = queue.pop()
        if node not in live:
            live.add(node)
            queue.extend(node.all_input_nodes)
        if not queue:
            queue = [writer for writer in writers if writer not in live and not live.isdisjoint(_viewed(writer))]
    return live


def _viewed(node: fx.Node) -> Iterator[fx.Node]:
    """What a writing operator's first operand is, and is a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node
        if _operator(node.target) not in VIEWS:
            return


def _is_uniform(tensor: Tensor) -> bool:
    if tensor.is_meta or tensor.numel() > 1 << 22:
        return tensor.numel() == 1
    return tensor.numel() <= 1 or bool((tensor == tensor.flatten()[0]).all())
