"""TopoConfig: every setting of a run, checked when made, round-tripping through JSON."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from topoopt.control import Policy, policy_from_dict, policy_from_mode, policy_to_dict
from topoopt.errors import ConfigError

Mode = Literal["report", "preserve", "simplify", "hold"]
Estimator = Literal["auto", "spectral", "pairwise"]
Engine = Literal[
    "auto",
    "double backward",
    "double backward, math attention",
    "finite differences",
    "finite differences through .grad",
]
Keep = Literal["none", "host", "device"]
WATCHED, STEERED = 0.01, 0.05
"""Largest share of the wall time by default: a factor that goes by one reading in 500 steps follows nothing."""
LONGEST = 2**20
"""Characters of the longest JSON that is read as a config."""


class TopoOptions(TypedDict, total=False):
    """`TopoConfig`'s fields as keyword options, for `**options: Unpack[TopoOptions]`: editors and type checkers see typos."""

    mode: Mode | Policy
    every: int
    budget: float | Literal["auto"] | None
    homology: int
    max_points: int
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    estimator: Estimator
    seed: int
    strict: bool
    products: int
    reading_products: int | Literal["auto"]
    engine: Engine
    field: bool
    per_group: bool
    keep: Keep
    snapshot: bool
    wait: bool


@dataclass(frozen=True)
class TopoConfig:
    """Settings of `TopoOptimizer`; its keyword options are these fields.

    A value of the wrong type or outside its range is a `ConfigError` that names it; numpy's scalars are taken as Python's.
    """

    mode: Mode | Policy = "report"
    """"report", "preserve", "simplify", "hold", or a policy object."""
    every: int = 100
    """Measure each this many optimizer steps; the budget may stretch it."""
    budget: float | Literal["auto"] | None = "auto"
    """Largest share of wall time that measuring may take; "auto": 0.01 where the run is only watched, 0.05 where a policy steers
    by what is read. None: no limit, `every` is then exact (and reproducible)."""
    homology: int = 1
    """Highest degree of homology; 0 keeps everything on the device, -1 computes none."""
    max_points: int = 4096
    """Above this many neurons homology uses maxmin landmarks, with their covering radius in the record."""
    include: str | Sequence[str] | None = None
    """Glob patterns over group names: only these are measured. None: all kinds but `residual` and `head_dim`."""
    exclude: str | Sequence[str] | None = None
    """Glob patterns over group names that are left out."""
    estimator: Estimator = "auto"
    """"auto" and "spectral" read r; "pairwise" takes no products: r_pair and certificates, but no phase."""
    seed: int = 0
    """Seed of topoopt's own generators; the global ones are never touched."""
    strict: bool = False
    """Certify every step: shorten a step whose r_pair would reach 1 (steering modes only)."""
    products: int = 5
    """Jacobian products of a reading that starts cold: the first, and every twentieth."""
    reading_products: int | Literal["auto"] = "auto"
    """Jacobian products of a reading, which goes on from what the last one saw; "auto": 1 to 6, as many as earlier readings of
    the run showed to be needed. Each costs one forward and backward (`benchmarks/accuracy.py` says what they are worth)."""
    engine: Engine = "auto"
    """How a product is taken: "auto" (double backward where the model allows it), or one way by name; "finite differences"
    needs half the time and two thirds of the memory, and sees the kinks of ReLU networks."""
    field: bool = False
    """Also measure r_field, the Lipschitz constant of the neuron field."""
    per_group: bool = True
    """Measure the proximity restricted to one neuron group a measurement, in turn."""
    keep: Keep = "none"
    """Where the neurons' points wait from one measurement to the next, so that distortion since the last and since the first
    is measured and homology certified: in host memory, on the device (as large as the weights, each of up to three times), or
    nowhere: distortion is then of single steps, and homology computed at each measurement."""
    snapshot: bool = True
    """Policies may keep a copy of the weights in host memory, to go back to."""
    wait: bool = False
    """Wait for homology at every measurement instead of taking results when they arrive."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self.policy  # noqa: B018 -- an unknown mode is refused here, not at the first step

    @property
    def largest_share(self) -> float | None:
        """What `budget` comes to in this mode."""
        if not isinstance(self.budget, str):
            return self.budget
        return STEERED if self.policy.steers else WATCHED

    @property
    def policy(self) -> Policy:
        """The policy that `mode` names."""
        return policy_from_mode(self.mode)

    @classmethod
    def from_options(cls, config: TopoConfig | None, options: TopoOptions | Mapping[str, Any]) -> TopoConfig:
        """Merge keyword options over a config.

        Raises:
            ConfigError: for an unknown option, with the one that may be meant, for a value that cannot be used, and for a
                config that is none.
        """
        if config is not None and not isinstance(config, TopoConfig):
            raise ConfigError(f"config={config!r} is no TopoConfig: give one, or its fields as keyword options")
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                close = get_close_matches(str(key), known, n=1)
                meant = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(f"unknown option {key!r}; {meant}TopoConfig has: {', '.join(known)}")
        base = {} if config is None else {name: getattr(config, name) for name in known}
        return cls(**{**base, **options})

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal config back.

        Raises:
            ConfigError: for a policy that is not one of topoopt's own.
        """
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        if not isinstance(self.mode, str):
            data["mode"] = policy_to_dict(self.mode)
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str | bytes) -> TopoConfig:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for what is no JSON object, an unknown option or a value that cannot be used.
        """
        data = _parsed(text)
        if isinstance(data.get("mode"), dict):
            data["mode"] = _policy(data["mode"])
        return cls.from_options(None, data)


def _parsed(text: str | bytes) -> dict[str, Any]:
    if not isinstance(text, str | bytes) or len(text) > LONGEST:
        given = f"{len(text)} characters" if isinstance(text, str | bytes) else type(text).__name__
        raise ConfigError(f"a config is at most {LONGEST} characters of JSON text; this is {given}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{text[:80]!r} is no JSON ({error}): give what TopoConfig.to_json wrote") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{text[:80]!r} is no JSON object: give what TopoConfig.to_json wrote")
    return data


def _policy(data: dict[str, Any]) -> Policy:
    try:
        return policy_from_dict(data)
    except ConfigError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"mode={str(data)[:200]} describes no policy: {error}") from error


# -- what each field may be -------------------------------------------------------------------------------------------

Check = Callable[[str, Any], Any]
"""From a field's name and value to the value that is kept; raises ConfigError."""


def _refused(name: str, value: object, wanted: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return ConfigError(f"{name}={shown} is not usable: give {wanted}")


def _whole(low: int, high: int, wanted: str) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise _refused(name, value, wanted)
        if not low <= (number := operator.index(value)) <= high:
            raise _refused(name, value, wanted)
        return number

    return check


def _share(name: str, value: Any) -> float | None:
    number = not isinstance(value, bool | np.bool_) and isinstance(value, int | float | np.integer | np.floating)
    if value is not None and not (number and 0 < value <= 1):
        raise _refused(name, value, 'a share of wall time in (0, 1], "auto", or None')
    return None if value is None else float(value)


def _or(word: str, check: Check) -> Check:
    return lambda name, value: value if isinstance(value, str) and value == word else check(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _refused(name, value, "True or False")
    return bool(value)


def _one_of(kind: Any) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in get_args(kind):
            close = get_close_matches(value, get_args(kind), n=1) if isinstance(value, str) else []
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise _refused(name, value, f"one of {', '.join(get_args(kind))}{meant}")
        return str(value)

    return check


def _patterns(name: str, value: Any) -> tuple[str, ...] | None:
    wanted = "a glob pattern, a sequence of them, or None"
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise _refused(name, value, wanted)
    patterns = tuple(value)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise _refused(name, value, wanted)
    return patterns


_STEPS = 2**53
_CHECKS: dict[str, Check] = {
    "every": _whole(1, _STEPS, "a whole number of steps >= 1"),
    "budget": _or("auto", _share),
    "homology": _whole(-1, 2, "a degree from -1 (none) to 2"),
    "max_points": _whole(2, _STEPS, "a whole number of neurons, at least 2"),
    "include": _patterns,
    "exclude": _patterns,
    "estimator": _one_of(Estimator),
    "seed": _whole(0, 2**63 - 1, "a whole number from 0 to 2**63 - 1"),
    "strict": _flag,
    "products": _whole(2, _STEPS, "a whole number, at least 2"),
    "reading_products": _or("auto", _whole(1, _STEPS, 'a whole number, at least 1, or "auto"')),
    "engine": _one_of(Engine),
    "field": _flag,
    "per_group": _flag,
    "keep": _one_of(Keep),
    "snapshot": _flag,
    "wait": _flag,
}
