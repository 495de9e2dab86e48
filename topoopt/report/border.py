"""The one border where lines of a record are read, which anybody may have written: types and numbers are held to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from topoopt.measurement import Decision, GroupMeasurement, Measurement, MergeTree, SpectralReading
from topoopt.report.lines import (
    LARGEST,
    DecisionLine,
    EndLine,
    Header,
    Line,
    MeasurementLine,
    ReadingLine,
    VerdictLine,
    decode_diagram,
)
from topoopt.summary import Summary
from topoopt.verdict import Verdict


def _hook(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        return decode_diagram(value)
    if kind is object:  # a value of the settings
        return value
    raise NotImplementedError(f"nothing of type {kind} is in a record")


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    # Not strict: so "nan", "inf" and "-inf" are read as numbers. What cannot be its field's type is refused all the same.
    return msgspec.json.Decoder(kind, dec_hook=_hook, strict=False)


class _Type(msgspec.Struct):
    type: str | None = None


class _Step(msgspec.Struct):
    step: int


_type, _step = _decoder(_Type), _decoder(_Step)
_values = {kind: _decoder(kind) for kind in (Header, Measurement, SpectralReading, Decision, Verdict, Summary)}
_READERS: dict[str, Callable[[bytes], Line]] = {
    "header": _values[Header].decode,
    "measurement": lambda text: MeasurementLine(_values[Measurement].decode(text)),
    "reading": lambda text: ReadingLine(_values[SpectralReading].decode(text)),
    "decision": lambda text: DecisionLine(_step.decode(text).step, _values[Decision].decode(text)),
    "verdict": lambda text: VerdictLine(_step.decode(text).step, _values[Verdict].decode(text)),
    "end": lambda text: EndLine(_values[Summary].decode(text)),
}
_FIRST = re.compile(rb'\s*{\s*"type"\s*:\s*"(\w*)"')


def type_of(text: bytes) -> str | None:
    """What the line says it is; None where it does not, as in version 1.

    Raises:
        ValueError: for what is no JSON object.
    """
    first = _FIRST.match(text)
    return first[1].decode("ascii", "replace") if first is not None else _type.decode(text).type


def decode(text: bytes, kind: str) -> Line:
    """Read one line of version 2, of a type.

    Raises:
        ValueError: for what is no such line, with the place and the reason; RecursionError for hostile nesting.
    """
    if kind not in _READERS:
        raise ValueError(f"its type {kind[:40]!r} is none of {', '.join(_READERS)}")
    line = _READERS[kind](text)
    check(line)
    return line


def convert(data: Any, kind: type) -> Any:
    """Hold JSON values that were read elsewhere to a type, with the same rules.

    Raises:
        ValueError: where they do not fit.
    """
    return msgspec.convert(data, kind, dec_hook=_hook, strict=False)


def _integers(kind: type) -> Callable[[Any], Iterable[int]]:
    return attrgetter(*(f.name for f in fields(kind) if f.type == "int"))


_CHECKED = {kind: _integers(kind) for kind in (GroupMeasurement, SpectralReading)}


def check(line: Line) -> None:
    """Hold a line to what types do not say: numbers that can be numbers of steps, and a rate for each parameter group.

    Raises:
        ValueError: with the reason.
    """
    if isinstance(line, DecisionLine | VerdictLine):
        _bounded((line.step,))
    if isinstance(line, ReadingLine):
        _bounded(_CHECKED[SpectralReading](line.value))
    if isinstance(line, MeasurementLine):
        check_measurement(line.value)


def check_measurement(m: Measurement) -> None:
    """Hold a measurement to what its types do not say.

    Raises:
        ValueError: with the reason.
    """
    _bounded((m.step, *m.counts.values(), *_CHECKED[SpectralReading](m.spectral)))
    if m.step < 0:
        raise ValueError(f"step {m.step} is no step")
    ends = m.assessment
    if not m.lr or not len(m.lr) == len(ends.eta_star) == len(ends.eta_star_bracket):
        raise ValueError(
            f"lr, eta_star and eta_star_bracket need one entry for each parameter group; they have {len(m.lr)}, "
            f"{len(ends.eta_star)} and {len(ends.eta_star_bracket)}"
        )
    for group in m.groups.values():
        _bounded(_CHECKED[GroupMeasurement](group))
        if group.merge_tree is not None:
            _check_tree(group.merge_tree)


def _check_tree(tree: MergeTree) -> None:
    """A tree joins clusters that there are, each once."""
    leaves = len(tree.sizes)
    _bounded(tree.sizes)
    joined = [cluster for pair in tree.merges for cluster in pair]
    known = all(0 <= a < leaves + k and 0 <= b < leaves + k for k, (a, b) in enumerate(tree.merges))
    if len(tree.merges) != leaves - 1 or len(set(joined)) != len(joined) or not known or min(tree.sizes) < 1:
        raise ValueError(f"a merge tree of {leaves} clusters and {len(tree.merges)} merges is no tree")


def _bounded(numbers: Iterable[int]) -> None:
    if any(not -LARGEST <= number <= LARGEST for number in numbers):
        raise ValueError(f"a whole number is beyond 2**53 = {LARGEST}")
