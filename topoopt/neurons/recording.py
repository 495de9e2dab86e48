"""The graph of one run: every operator that a copy calls, and between which tensors.

An export would say the same, but tracing replaces `nn.Module.__call__` and flags of the compiler for the whole process,
and it refuses models whose Python looks at numbers. Recording belongs to this thread and follows the branch taken; what
Python looked at is kept, so that nothing is permuted that a branch hangs on.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from topoopt.neurons.rules import RULES
from topoopt.neurons.running import ThreadMode

CELLS = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
WHOLE = {
    "linear",
    "scaled_dot_product_attention",
    "prelu",
    *CELLS,
    *(name for name in RULES if name.startswith("fft_")),
}
"""Functions that are recorded as they are called, not as the operators that they are made of."""

READING = {"tolist", "numpy", "__array__", "__dlpack__"}
"""Methods that hand numbers to Python without an operator."""


class Recording:
    """A graph in the making: `fx` nodes with the shapes of their results, and where each tensor came from."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.graph = fx.Graph()
        self.read: list[fx.Node] = []
        """Nodes whose numbers Python has looked at."""
        self.leaves: dict[fx.Node, tuple[str, str, Tensor]] = {}
        """Placeholder -> kind (parameter, buffer, input or constant), name, and the tensor itself."""
        self.handed_out = 0
        """How many tensors went to numpy or another library."""
        self.paused = False
        self._nodes: Any = WeakIdKeyDictionary()
        self._kinds: Any = WeakIdKeyDictionary()
        for kind, named in (("buffer", model.named_buffers()), ("parameter", model.named_parameters())):
            for name, tensor in named:
                self._kinds[tensor] = (kind, name)
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._kinds[leaf] = ("input", "")

    def node(self, tensor: Tensor) -> fx.Node:
        """Where a tensor came from; one that no recorded operator made is a placeholder."""
        node = self._nodes.get(tensor)
        if node is None:
            node = self.graph.placeholder(f"leaf_{len(self.leaves)}")
            kind, name = self._kinds.get(tensor, ("constant", ""))
            self.leaves[node] = (kind, name, tensor)
            self._keep(node, tensor)
        return node

    def note(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Write an operator's call down."""
        node_args, node_kwargs = tree_map(self._referred, (tuple(args), dict(kwargs)))
        node = self.graph.call_function(target, node_args, node_kwargs)
        if isinstance(result, Tensor):
            self._keep(node, result)
            return
        results = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        node.meta["shape"] = [list(one.shape) for one in results] or None
        if not results:
            self.read += node.all_input_nodes
        for i, one in enumerate(results):
            self._keep(self.graph.call_function(operator.getitem, (node, i)), one)

    def finish(self, outputs: Any) -> None:
        """Close the graph: what the run returned is what everything must leave as it is."""
        self.graph.output([self.node(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)])

    def _referred(self, leaf: Any) -> Any:
        return self.node(leaf) if isinstance(leaf, Tensor) else leaf

    def _keep(self, node: fx.Node, tensor: Tensor) -> None:
        node.meta["shape"] = [int(size) for size in tensor.shape]
        self._nodes[tensor] = node


class Operators(ThreadMode):
    """Notes every operator below automatic differentiation."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            result: Any = True  # without numbers there is no branch to follow: the sibling is what verifies
        else:
            result = func(*args, **(kwargs or {}))
        if not self._recording.paused:
            self._recording.note(func, args, kwargs or {}, result)
        return result


class Functions(TorchFunctionMode):
    """Notes some functions as a whole."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READING:
            self._recording.read.append(self._recording.node(args[0]))
            self._recording.handed_out += name != "tolist"
        if name not in WHOLE or self._recording.paused:
            return func(*args, **(kwargs or {}))
        self._recording.paused = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._recording.paused = False
        self._recording.note(func, *_in_order(func, args, dict(kwargs or {})), result)
        return result


def _in_order(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments given by name, by position where the operator takes them so, as rules expect them."""
    packet = getattr(torch.ops.aten, func.__name__)
    if "default" not in packet.overloads():
        return args, kwargs
    taken = [argument for argument in packet.default._schema.arguments if not argument.kwarg_only]
    last = max((i for i, argument in enumerate(taken) if argument.name in kwargs), default=-1)
    more = tuple(kwargs.pop(argument.name, argument.default_value) for argument in taken[len(args) : last + 1])
    return (*args, *more), kwargs


@contextmanager
def recorded(recording: Recording | None) -> Iterator[None]:
    """Write down what this thread calls, where there is something to write to."""
    if recording is None:
        yield
        return
    with Operators(recording), Functions(recording):
        yield
