"""LSTM, GRU and plain recurrent layers: gates are an outer factor, and the state's axis meets itself again."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, rule


@rule("lstm")
def lstm(out: list[list[int]], x: Value, state: list[Value], weights: list[Value], *options: Any) -> list[Value]:
    """Four gates."""
    return _recurrent(out, x, state, weights, 4, *options)


@rule("gru")
def gru(out: list[list[int]], x: Value, state: Value, weights: list[Value], *options: Any) -> list[Value]:
    """Three gates."""
    return _recurrent(out, x, [state], weights, 3, *options)


@rule("rnn_tanh", "rnn_relu")
def rnn(out: list[list[int]], x: Value, state: Value, weights: list[Value], *options: Any) -> list[Value]:
    """No gate."""
    return _recurrent(out, x, [state], weights, 1, *options)


def _recurrent(
    out: list[list[int]], x: Value, state: list[Value], weights: list[Value], gates: int, has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool = False,
) -> list[Value]:  # fmt: skip
    directions = 2 if bidirectional else 1
    per_cell = len(weights) // (layers * directions)
    feature, cells = x.dims[-1], []
    for layer in range(layers):
        produced = []
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            produced.append(_cell(feature, weights[first : first + per_cell], gates, has_biases))
        cells += produced
        feature = Axis.sum([shown for shown, _ in produced])
    _initial(state, cells)
    time = x.dims[0 if not batch_first or len(x.dims) == 2 else 1]
    time.freeze("time steps of a recurrent layer")
    states = [_final(shape, [cell[i] for cell in cells], x) for i, shape in enumerate(out[1:])]
    return [Value([*x.dims[:-1], feature]), *states]


def _cell(feature: Axis, weights: list[Value], gates: int, has_biases: bool) -> tuple[Axis, Axis]:
    """Tie one cell's weights together; returns (axis of what it shows, axis of its inner state)."""
    w_ih, w_hh = weights[0], weights[1]
    unify(feature, w_ih.dims[1])
    hidden = w_ih.dims[0].size // gates
    gate, unit = w_ih.dims[0].split([gates, hidden]) if gates > 1 else (Axis(1), w_ih.dims[0])
    gate.freeze("the gates of a recurrent layer")
    unify(w_ih.dims[0], w_hh.dims[0])
    for bias in weights[2:4] if has_biases else []:
        unify(w_ih.dims[0], bias.dims[0])
    unit.mark("recurrent")
    if len(weights) in (3, 5):  # an LSTM with a projection: what is shown is the projected state
        projection = weights[-1]
        unify(projection.dims[1], unit)
        unify(projection.dims[0], w_hh.dims[1])
        projection.dims[0].mark("recurrent")
        return projection.dims[0], unit
    unify(w_hh.dims[1], unit)
    return unit, unit


def _initial(state: list[Value], cells: list[tuple[Axis, Axis]]) -> None:
    """A given first state ties all layers' units to its last axis; zeros tie nothing."""
    for i, value in enumerate(state):
        if not value.uniform:
            for cell in cells:
                unify(cell[i], value.dims[-1])


def _final(shape: list[int], axes: list[Axis], x: Value) -> Value:
    """The last states of all layers and directions, stacked: they share one axis only if there is one cell."""
    last = axes[0] if len(axes) == 1 else _Tied(int(shape[-1]), axes)
    middle = [Axis(int(size), "the batch of a recurrent state") for size in shape[1:-1]]
    return Value([Axis(int(shape[0]), "layers and directions"), *middle, last])


class _Tied(Axis):
    """The unit axis of stacked states: whoever uses it ties the cells together."""

    __slots__ = ("_axes",)

    def __init__(self, size: int, axes: list[Axis]) -> None:
        super().__init__(size)
        self._axes: list[Axis] | None = axes

    def find(self) -> Axis:
        if self._axes is not None:
            axes, self._axes = self._axes, None
            for axis in axes:
                unify(super().find(), axis)
        return super().find()


@rule("lstm_cell")
def lstm_cell(out: list[list[int]], x: Value, state: list[Value], *weights: Value) -> list[Value]:
    """One step of four gates; returns (h, c)."""
    shown, inner = _step(x, list(state), weights, 4)
    return [Value([*x.dims[:-1], shown]), Value([*x.dims[:-1], inner])]


@rule("gru_cell")
def gru_cell(out: list[int], x: Value, state: Value, *weights: Value) -> Value:
    """One step of three gates."""
    return Value([*x.dims[:-1], _step(x, [state], weights, 3)[0]])


@rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(out: list[int], x: Value, state: Value, *weights: Value) -> Value:
    """One step without a gate."""
    return Value([*x.dims[:-1], _step(x, [state], weights, 1)[0]])


def _step(x: Value, state: list[Value], weights: tuple[Value, ...], gates: int) -> tuple[Axis, Axis]:
    given = [weight for weight in weights if weight is not None]
    cell = _cell(x.dims[-1], given, gates, has_biases=len(given) > 2)
    _initial(state, [cell])
    return cell
