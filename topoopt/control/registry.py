"""From a mode's name or a saved dict to a policy, and back."""

from __future__ import annotations

from dataclasses import asdict

from topoopt.control.policies import Report
from topoopt.control.policy import Policy
from topoopt.errors import ConfigError

POLICIES = {"report": Report}


def policy_from_mode(mode: str | Policy) -> Policy:
    """Return the policy that a mode names; a policy object is its own.

    Raises:
        ConfigError: for an unknown name, listing the known ones.
    """
    if isinstance(mode, str):
        if mode not in POLICIES:
            raise ConfigError(f"mode={mode!r} is not known: give one of {', '.join(POLICIES)}, or a policy object")
        return POLICIES[mode]()
    if not isinstance(mode, Policy):
        raise ConfigError(f"mode={mode!r} is neither a mode's name nor a policy (it needs name, steers, start, decide)")
    return mode


def policy_to_dict(policy: Policy) -> dict:
    """A JSON-able dict from which `policy_from_dict` makes an equal policy."""
    return {"policy": policy.name, **asdict(policy)}  # type: ignore[arg-type]


def policy_from_dict(data: dict) -> Policy:
    """Read what `policy_to_dict` wrote."""
    rest = dict(data)
    return POLICIES[rest.pop("policy")](**rest)
