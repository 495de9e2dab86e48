"""A run's record: JSON lines, one measurement a line, written as they come and read back without loss.

The first line is a header with the settings. Infinite and undefined numbers are written as strings, since JSON has none.
A run that was killed may leave half a line at the end; a resumed run appends; a measurement that comes again for the same
step (late homology) takes the earlier one's place when read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from topoopt.config import TopoConfig
from topoopt.errors import TopoError
from topoopt.measurement import Assessment, Cost, Decision, GroupMeasurement, Measurement, Phase, SpectralReading

VERSION = 1
_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RecordError(TopoError, ValueError):
    """A file that is no record."""


class JsonLines:
    """A sink that writes every measurement to a file as it comes; usable as a context manager."""

    def __init__(self, path: str | Path, config: TopoConfig | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        self._file: IO[str] | None = self.path.open("a", encoding="utf-8")
        if fresh:
            settings = None if config is None else json.loads(config.to_json())
            self._write({"topoopt": VERSION, "config": settings})
        elif not _ends_with_newline(self.path):
            self._file.write("\n")  # half a line of a killed run stays a line of its own

    def __call__(self, measurement: Measurement) -> None:
        """Write one measurement and flush it."""
        self._write(to_plain(measurement))

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, data: dict[str, Any]) -> None:
        if self._file is None:
            raise RecordError(f"the record {self.path} is closed")
        self._file.write(json.dumps(data, allow_nan=False) + "\n")
        self._file.flush()


@dataclass(frozen=True)
class Record:
    """A record read back."""

    path: Path
    measurements: list[Measurement]
    """By step; of a step that was written twice, the last."""
    config: dict[str, Any] | None
    problems: tuple[str, ...]
    """Lines that could not be read, each with its number and reason."""


def read(path: str | Path) -> Record:
    """Read what `JsonLines` wrote.

    Raises:
        RecordError: for a file that is missing, or holds neither a header nor a measurement.
    """
    path = Path(path)
    path = path / "record.jsonl" if path.is_dir() else path
    if not path.exists():
        raise RecordError(f"there is no record at {path}: give the file that JsonLines wrote, or its folder")
    config, problems, by_step = None, [], {}
    header = False
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if "topoopt" in data:
                header, config = True, data.get("config")
            else:
                measurement = from_plain(data)
                by_step[measurement.step] = measurement
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"line {number} could not be read ({type(error).__name__}: {error})")
    if not header and not by_step:
        raise RecordError(f"{path} is no record of topoopt: its first line has no header, and no line is a measurement")
    return Record(path, [by_step[step] for step in sorted(by_step)], config, tuple(problems))


def to_plain(measurement: Measurement) -> dict[str, Any]:
    """A JSON-able dict from which `from_plain` makes an equal measurement."""
    return _plain(measurement)


def from_plain(data: dict[str, Any]) -> Measurement:
    """Read what `to_plain` made; fields of later versions are left out."""
    values = _known(Measurement, _numbers(data))
    values["groups"] = {name: _group(group) for name, group in values["groups"].items()}
    values["lr"], values["notes"] = tuple(values["lr"]), tuple(values["notes"])
    spectral = _known(SpectralReading, values["spectral"])
    group = spectral.get("group")
    spectral |= {"lr": tuple(spectral["lr"]), "notes": tuple(spectral["notes"])}
    values["spectral"] = SpectralReading(
        **{**spectral, "group": None if group is None else (group[0], float(group[1]))}
    )
    stands = _known(Assessment, values["assessment"])
    stands |= {"phase": Phase(stands["phase"]), "eta_star": tuple(stands["eta_star"]), "notes": tuple(stands["notes"])}
    stands["eta_star_bracket"] = tuple((low, high) for low, high in stands["eta_star_bracket"])
    values["assessment"], values["cost"] = Assessment(**stands), Cost(**_known(Cost, values["cost"]))
    if values.get("decision") is not None:
        decision = _known(Decision, values["decision"])
        values["decision"] = Decision(**{**decision, "events": tuple(decision["events"])})
    return Measurement(**values)


def _group(data: dict[str, Any]) -> GroupMeasurement:
    values = _known(GroupMeasurement, data)
    for name in ("distortion", "distortion_window", "distortion_total", "gain_pair", "total_persistence", "notes"):
        values[name] = tuple(values[name])
    values["diagrams"] = tuple(np.asarray(d, dtype=np.float64).reshape(-1, 2) for d in values["diagrams"])
    return GroupMeasurement(**values)


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in data.items() if key in names}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _numbers(value: Any) -> Any:
    """Put infinite and undefined numbers back; only whole strings "nan", "inf" and "-inf" in number fields are such."""
    if isinstance(value, dict):
        return {key: one if key in _TEXT else _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return _ODD.get(value, value) if isinstance(value, str) else value


_TEXT = {
    "phase",
    "estimator",
    "rule",
    "engine",
    "notes",
    "note",
    "policy",
    "events",
    "skipped",
    "reason",
    "warming",
    "group",
}
"""Fields that hold text, which stays as it is."""


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
