"""The lines of a record: what each holds, and how it is written; `topoopt.report.border` reads them.

A line is a JSON object whose `type` says what it is. Fields that have their default are left out; numbers that JSON does not
have are the strings "nan", "inf" and "-inf"; a persistence diagram is the base64 of its float32 numbers (relative rounding of
6e-8, as fine as distances are measured in), of its deaths alone where all births are 0.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

import msgspec
import numpy as np

from topoopt.measurement import Decision, Measurement, SpectralReading
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
