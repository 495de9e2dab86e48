"""From a mode's name or a saved dict to a policy, and back."""

from __future__ import annotations

from dataclasses import fields
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
    if not isinstance(mode, Policy):
        raise ConfigError(f"mode={mode!r} is neither a mode's name nor a policy (it needs name, steers, start, decide)")
    return mode


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """A JSON-able dict from which `policy_from_dict` makes an equal policy.

    Raises:
        ConfigError: for a policy that is not one of topoopt's own.
    """
    if _POLICIES.get(policy.name) is not type(policy):
        raise ConfigError(f"policy {policy!r} is not one of {', '.join(_POLICIES)}: it cannot be written as JSON")
    if isinstance(policy, Schedule):
        return {"policy": policy.name, "phases": [[at, policy_to_dict(p)] for at, p in policy.phases.items()]}
    data = {f.name: getattr(policy, f.name) for f in fields(policy)}  # type: ignore[arg-type]
    return {"policy": policy.name, **{k: policy_to_dict(v) if isinstance(v, Policy) else v for k, v in data.items()}}


def policy_from_dict(data: dict[str, Any]) -> Policy:
    """Read what `policy_to_dict` wrote.

    Raises:
        ConfigError: for an unknown policy.
    """
    rest = dict(data)
    name = rest.pop("policy", None)
    if name not in _POLICIES:
        raise ConfigError(f"policy {name!r} is not known: {', '.join(_POLICIES)} are")
    if name == "schedule":
        return Schedule({start: policy_from_dict(inner) for start, inner in rest["phases"]})
    return _POLICIES[name](**{k: policy_from_dict(v) if isinstance(v, dict) else v for k, v in rest.items()})
