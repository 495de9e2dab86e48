"""A long sequence of a file's lines, of which only the first few megabytes are kept read."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from topoopt.errors import RecordError
from topoopt.report.lines import LARGEST

T = TypeVar("T")

KEPT = 16 * 2**20
"""Bytes of a record's lines whose results stay in memory; later ones are read again when they are asked for."""


class Source:
    """The file that lines are read from again, and how much of it may still be kept."""

    def __init__(self, path: Path) -> None:
        self.path, self.left = path, KEPT
        self._is = self._identity()

    def read(self, start: int, size: int) -> bytes:
        """Return the bytes of one line.

        Raises:
            RecordError: when another file stands there now.
        """
        try:
            if self._identity() != self._is:
                raise RecordError(f"{self.path} is another file than the one that was read: read it again")
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise RecordError(f"{self.path} cannot be read any more ({error.strerror}): read it again") from error

    def _identity(self) -> tuple[int, int]:
        stat = os.stat(self.path)
        return stat.st_dev, stat.st_ino


class Lines(Sequence[T], Generic[T]):
    """What a file's lines hold, in order of their steps; of a step that comes again, the last.

    What is not kept is read again when asked for: one object at a time, the same object as long as somebody holds it.
    """

    def __init__(self, source: Source, decode: Callable[[bytes], T]) -> None:
        self._source, self._decode = source, decode
        self._at: dict[int, int] = {}  # step -> place in the arrays
        self._starts, self._sizes = array("q"), array("q")
        self._order: array[int] | None = None
        self._kept: dict[int, T] = {}
        self._held: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def put(self, step: int, start: int, size: int, value: T, *, part: bool = False) -> None:
        """Add a line that was read; one of the same step is replaced, unless it is -1: tied to no step.

        Args:
            step: the line's.
            start: where the line begins in the file.
            size: of the line, in bytes.
            value: what was read.
            part: of what another sequence holds: costs no memory of its own.
        """
        at = self._at.setdefault(step if step >= 0 else -LARGEST + len(self._starts), len(self._starts))
        if at == len(self._starts):
            self._starts.append(start)
            self._sizes.append(size)
            self._order = None
        else:
            self._starts[at], self._sizes[at] = start, size
        if self._kept.pop(at, None) is not None or self._source.left > 0:
            self._kept[at] = value
            self._source.left -= 0 if part else size

    def drop_from(self, step: int) -> None:
        """Forget what a resumed run did again."""
        for later in [one for one in self._at if one >= step]:
            self._kept.pop(self._at.pop(later), None)
        self._order = None

    @property
    def steps(self) -> Sequence[int]:
        """The step of each, ascending."""
        if self._order is None:
            self._order = array("q", sorted(self._at))
        return self._order

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._value(step) for step in self.steps[index]]
        return self._value(self.steps[index])

    def __iter__(self) -> Iterator[T]:
        return (self._value(step) for step in self.steps)

    def __repr__(self) -> str:
        return f"<{len(self)} of {self._source.path.name}>"

    def _value(self, step: int) -> T:
        at = self._at[step]
        value: T | None = self._kept.get(at) or self._held.get(at)
        if value is None:
            try:
                value = self._decode(self._source.read(self._starts[at], self._sizes[at]))
            except RecordError:
                raise
            except (ValueError, AttributeError) as error:
                raise RecordError(f"{self._source.path} has changed since it was read: read it again") from error
            if not isinstance(value, tuple):  # which cannot be referred to weakly, and has no identity to keep
                self._held[at] = value
        return value
