"""Numbers for people: two significant digits."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Two significant digits, plain from 0.01 to 10,000 and as 6e-3 beyond."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    if -2 <= int(exponent) < 4:
        rounded = float(f"{value:.1e}")
        return f"{rounded:.0f}" if abs(rounded) >= 10 else f"{rounded:.2g}"
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
