"""Values for the page: a record is a file that anybody may have written, so that no type in it is taken on trust."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

DIGITS = 5
"""Significant digits of what is embedded: more than a picture can show."""
LONGEST = 300
"""Characters of one text of a record that are shown; only the verdict's lines are longer."""


def number(value: Any, digits: int = DIGITS) -> float | int | None:
    """A finite number in `digits` significant digits; None for anything else, text included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**53 else None
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def numbers(values: Iterable[Any], digits: int = DIGITS) -> list[float | int | None]:
    """Each value as `number`."""
    return [number(value, digits) for value in values]


def clip(value: Any, longest: int = LONGEST) -> str:
    """Text of at most `longest` characters, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown(value: Any, digits: int = 4) -> str:
    """A number for people; a dash where it is unknown."""
    known = number(value, digits)
    if known is None:
        return "infinite" if isinstance(value, float) and math.isinf(value) else "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{known:.{digits}g}"


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    if most <= 1:
        return [count - 1][:most]
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
