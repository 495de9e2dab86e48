"""From a mode's name or a saved dict to a policy, and back."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, is_dataclass
from typing import Any

from topoopt.control.hold import Hold
from topoopt.control.policy import Policy
from topoopt.control.preserve import Preserve
from topoopt.control.report import Report
from topoopt.control.schedule import Schedule
from topoopt.control.simplify import Simplify
from topoopt.errors import ConfigError

MODES: dict[str, type] = {"report": Report, "preserve": Preserve, "simplify": Simplify, "hold": Hold}
_POLICIES: dict[str, type] = {**MODES, "schedule": Schedule}


def policy_from_mode(mode: str | Policy) -> Policy:
    """Return the policy that a mode names; a policy object is its own.

    Raises:
        ConfigError: for an unknown name, listing the known ones.
    """
    if isinstance(mode, str):
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r} is not known: give one of {', '.join(MODES)}, or a policy object")
        return MODES[mode]()
    if isinstance(mode, type) or not isinstance(mode, Policy):
        raise ConfigError(
            f"mode={mode!r} is neither a mode's name nor a policy object (which has name, steers, start and decide)"
        )
    return mode


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """A JSON-able dict that says which policy it is, from which `policy_from_dict` makes an equal one.

    A policy of one's own is named "module:Class". It comes back if it is a frozen dataclass at the top of its module
    whose fields are JSON's own types or policies; any other is only described, and says so when it is asked back.
    """
    name = next((name for name, kind in _POLICIES.items() if kind is type(policy)), None)
    if isinstance(policy, Schedule) and name == "schedule":
        return {"policy": name, "phases": [[at, policy_to_dict(p)] for at, p in policy.phases.items()]}
    own = f"{type(policy).__module__}:{type(policy).__qualname__}"
    try:
        return {"policy": name or own, **_settings(policy)}
    except (TypeError, ValueError) as error:
        return {"policy": own, "described": repr(policy), "reason": str(error)}


def policy_from_dict(data: dict[str, Any]) -> Policy:
    """Read what `policy_to_dict` wrote.

    A policy of one's own is looked up among the modules that are loaded already: reading a file imports nothing.

    Raises:
        ConfigError: for a policy that is not known, or was only described.
    """
    rest = dict(data) if isinstance(data, dict) else {}
    name = rest.pop("policy", None)
    if "described" in rest:
        raise ConfigError(f"policy {rest['described']} was described, not saved ({rest.get('reason')}): make it anew")
    kind = _POLICIES.get(name) or _loaded(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(
            f"policy {name!r} is not known: {', '.join(_POLICIES)} are, and a dataclass of your own as module:Class, once "
            "its module is imported"
        )
    try:
        if kind is Schedule:
            return Schedule({start: policy_from_dict(inner) for start, inner in rest["phases"]})
        return kind(**{key: policy_from_dict(v) if _is_policy(v) else v for key, v in rest.items()})
    except ConfigError:
        raise
    except (TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"policy {name!r} cannot be made from {rest}: {error}") from error


def _settings(policy: Policy) -> dict[str, Any]:
    """The policy's fields, policies among them as dicts.

    Raises:
        TypeError: where they are no dataclass's, or not JSON's own types.
    """
    if not is_dataclass(policy):
        raise TypeError("it is no dataclass")
    values = {f.name: getattr(policy, f.name) for f in fields(policy) if f.init}
    plain = {key: policy_to_dict(v) if isinstance(v, Policy) else v for key, v in values.items()}
    if json.loads(json.dumps(plain, allow_nan=False)) != plain:
        raise TypeError("its fields do not survive JSON")
    return plain


def _loaded(name: str) -> type | None:
    """The dataclass with a policy's face that `name` ("module:Class") stands for, if its module is loaded."""
    module, _, kind = name.partition(":")
    found = getattr(sys.modules.get(module), kind, None)
    fits = isinstance(found, type) and is_dataclass(found) and all(hasattr(found, m) for m in ("start", "decide"))
    return found if fits else None


def _is_policy(value: object) -> bool:
    return isinstance(value, dict) and "policy" in value
