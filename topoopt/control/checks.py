"""Settings of a policy, checked for type and range when it is made."""

from __future__ import annotations

import math

from topoopt.control.policy import Policy
from topoopt.errors import ConfigError


def require(ok: bool, policy: str, name: str, value: object, wanted: str) -> None:
    """Refuse a policy's setting.

    Raises:
        ConfigError: unless `ok`.
    """
    if not ok:
        raise ConfigError(f"{policy}({name}={value!r}) is not usable: give {wanted}")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_number(policy: str, name: str, value: object, wanted: str, low: float, high: float = math.inf) -> None:
    """Refuse what is no finite number in (low, high]."""
    require(is_number(value) and low < value <= high, policy, name, value, wanted)  # type: ignore[operator]


def require_whole(policy: str, name: str, value: object, low: int = 1) -> None:
    """Refuse what is no whole number from `low` on."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
    require(ok, policy, name, value, f"a whole number >= {low}")


def require_policy(policy: str, name: str, value: object) -> None:
    """Refuse what is no policy; its class is not one yet."""
    ok = isinstance(value, Policy) and not isinstance(value, type)
    require(ok, policy, name, value, "a policy object, such as Preserve()")
