"""Values for the page: a record is a file that anybody may have written, so that no type in it is taken on trust."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    small = known != 0 and abs(known) < 1e-3  # as the page's script writes them: 5.7e-4
    mantissa, exponent, power = (
        f"{known:.{digits - 1}e}".partition("e") if small else f"{known:.{digits}g}".partition("e")
    )
    if not exponent:
        return mantissa
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"


def setting(value: Any) -> str:
    """A setting's value for people: a policy by its name, with the parameters that are set."""
    if isinstance(value, Mapping):
        parts = [f"{key} {setting(one)}" for key, one in value.items() if key != "policy" and one is not None]
        name = f"{value['policy']}" if "policy" in value else ""
        return f"{name} ({', '.join(parts)})".strip() if parts else name
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return shown(value) if isinstance(value, float) and not math.isnan(value) else str(value)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    if most <= 1:
        return [count - 1][:most]
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
