"""The lines of a record: what each holds, how it is written, and the one border where it is read and its types are held to.

A line is a JSON object whose `type` says what it is. Fields that have their default are left out; numbers that JSON does not
have are the strings "nan", "inf" and "-inf"; a persistence diagram is the base64 of its float32 numbers (relative rounding of
6e-8, as fine as distances are measured in), of its deaths alone where all births are 0.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from topoopt.measurement import Decision, GroupMeasurement, Measurement, MergeTree, SpectralReading
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

VERSION = 2
"""Of the format. 1 was flat measurements without types; `version1` reads them."""
LONGEST = 64 * 2**20
"""Bytes of the longest line that is read."""
LARGEST = 2**53
"""Largest whole number that JSON's readers agree on; a greater one in a record is not ours."""


class Header(msgspec.Struct, omit_defaults=True):
    """Opens a run, or goes on with one."""

    topoopt: int
    run: Run | None = None
    config: dict[str, Any] | None = None
    """The `TopoConfig`, where no run is known to hold it."""
    versions: dict[str, str] = {}
    written: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class MeasurementLine:
    """One measurement; of a step that comes again (late homology), the later line counts."""

    value: Measurement


@dataclass(frozen=True)
class ReadingLine:
    """One reading of r, measured step or not."""

    value: SpectralReading


@dataclass(frozen=True)
class DecisionLine:
    """A change of the factor on the rate."""

    step: int
    value: Decision


@dataclass(frozen=True)
class VerdictLine:
    """A change of the verdict."""

    step: int
    value: Verdict


@dataclass(frozen=True)
class EndLine:
    """What is said of the run at its end."""

    value: Summary


Line = Header | MeasurementLine | ReadingLine | DecisionLine | VerdictLine | EndLine
TYPES: dict[type, str] = {
    Header: "header",
    MeasurementLine: "measurement",
    ReadingLine: "reading",
    DecisionLine: "decision",
    VerdictLine: "verdict",
    EndLine: "end",
}
"""What the `type` of a line is, which comes first in it; the fields of what it holds follow."""


# -- writing ----------------------------------------------------------------------------------------------------------


def encode(line: Line) -> bytes:
    """One line, its newline included."""
    data: dict[str, Any] = {"type": TYPES[type(line)]}
    if isinstance(line, Header):
        held = {name: getattr(line, name) for name in line.__struct_fields__}
        data |= plain({name: one for name, one in held.items() if one not in (None, "", {})})
    else:
        data |= {"step": line.step} if isinstance(line, DecisionLine | VerdictLine) else {}
        data |= plain(line.value)
    return json.dumps(data, allow_nan=False, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def plain(value: Any) -> Any:
    """Make JSON values of results: dataclasses become dicts without the fields that have their default."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if is_dataclass(value) and not isinstance(value, type):
        held = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: plain(one) for f, one in held if not _is_default(f, one)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return encode_diagram(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return plain(value.item()) if isinstance(value, np.generic) else value


def _is_default(field: Field[Any], value: Any) -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    if isinstance(default, float):
        return isinstance(value, float) and (value == default or (math.isnan(value) and math.isnan(default)))
    return type(value) is type(default) and value == default and default is not MISSING


def encode_diagram(diagram: np.ndarray) -> str:
    """Write a (k, 2) diagram as "f4:..." or "f8:...", or its deaths alone as "f4 deaths:..."."""
    numbers = np.asarray(diagram, dtype=np.float64).reshape(-1, 2)
    name = "f4"
    with np.errstate(over="ignore", under="ignore"):
        small = numbers.astype("<f4")
    lost = np.isinf(small) != np.isinf(numbers)
    if (lost | ((small == 0) != (numbers == 0))).any():  # beyond float32's range a death would become infinite, or 0
        small, name = numbers.astype("<f8"), "f8"
    if len(small) and not small[:, 0].any():
        small, name = small[:, 1], f"{name} deaths"
    return f"{name}:{base64.b64encode(small.tobytes()).decode('ascii')}"


# -- reading ----------------------------------------------------------------------------------------------------------


def decode_diagram(value: Any) -> np.ndarray:
    """Return the (k, 2) float64 diagram of what `encode_diagram` wrote, or of version 1's list of pairs.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, list):
        return np.array(msgspec.convert(value, list[tuple[float, float]], strict=False), float).reshape(-1, 2)
    name, _, text = value.partition(":") if isinstance(value, str) else ("", "", "")
    kind, _, deaths = name.partition(" ")
    if kind not in ("f4", "f8") or deaths not in ("", "deaths"):
        raise ValueError("a persistence diagram is no list of pairs and no text that begins with f4: or f8:")
    numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype=f"<{kind}").astype(np.float64)
    if deaths:
        numbers = np.stack([np.zeros_like(numbers), numbers], axis=1)
    return numbers.reshape(-1, 2)


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
