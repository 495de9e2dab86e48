"""TopoConfig: every setting of a run, checked when made, round-tripping through JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from topoopt.control import Policy, policy_from_dict, policy_from_mode, policy_to_dict
from topoopt.errors import ConfigError

ESTIMATORS = ("auto", "spectral", "pairwise")


@dataclass(frozen=True)
class TopoConfig:
    """Settings of `TopoOptimizer`; its keyword options are these fields."""

    mode: str | Policy = "report"
    """"report", "preserve", "simplify", "hold", or a policy object."""
    every: int = 100
    """Measure each this many optimizer steps; the budget may stretch it."""
    budget: float | None = 0.01
    """Largest share of wall time that measuring may take. None: no limit, `every` is then exact (and reproducible)."""
    homology: int = 1
    """Highest degree of homology; 0 keeps everything on the device, -1 computes none."""
    max_points: int = 4096
    """Above this many neurons homology uses maxmin landmarks, with their covering radius in the record."""
    include: str | tuple[str, ...] | None = None
    """Glob patterns over group names: only these are measured. None: all kinds but `residual` and `head_dim`."""
    exclude: str | tuple[str, ...] | None = None
    """Glob patterns over group names that are left out."""
    estimator: str = "auto"
    """"auto" (spectral when a loss is known, else pairwise), "spectral" or "pairwise"."""
    seed: int = 0
    """Seed of topoopt's own generators; the global ones are never touched."""
    strict: bool = False
    """Certify every step: shorten a step whose r_pair would reach 1 (steering modes only)."""
    products: int = 8
    """Jacobian products of one spectral estimate; the first, which has no start of its own, takes a quarter more."""
    engine: str = "auto"
    """How a product is taken: "auto" (double backward where the model allows it), or "finite differences", which needs half
    the time and two thirds of the memory, and sees the kinks of ReLU networks."""
    field: bool = False
    """Also measure r_field, the Lipschitz constant of the neuron field."""
    per_group: bool = True
    """Measure the proximity restricted to one neuron group a measurement, in turn."""
    wait: bool = False
    """Wait for homology at every measurement instead of taking results when they arrive."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        _require(isinstance(self.every, int) and self.every >= 1, "every", self.every, "a whole number of steps >= 1")
        _require(
            self.budget is None or 0 < self.budget <= 1,
            "budget",
            self.budget,
            "a share of wall time in (0, 1], or None",
        )
        _require(self.homology in (-1, 0, 1, 2), "homology", self.homology, "a degree from -1 (none) to 2")
        _require(self.max_points >= 2, "max_points", self.max_points, "at least 2")
        _require(self.estimator in ESTIMATORS, "estimator", self.estimator, f"one of {', '.join(ESTIMATORS)}")
        _require(self.products >= 2, "products", self.products, "at least 2")
        self.policy  # noqa: B018 -- an unknown mode is refused here, not at the first step

    @property
    def policy(self) -> Policy:
        """The policy that `mode` names."""
        return policy_from_mode(self.mode)

    @classmethod
    def from_options(cls, config: TopoConfig | None, options: dict[str, Any]) -> TopoConfig:
        """Merge keyword options over a config; an unknown key is an error that lists the known ones.

        Raises:
            ConfigError: for an unknown key or a value outside its range.
        """
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                raise ConfigError(f"unknown option {key!r}; TopoConfig has: {', '.join(known)}")
        base = {} if config is None else {f.name: getattr(config, f.name) for f in fields(cls)}
        return cls(**(base | options))

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal config back."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        if not isinstance(self.mode, str):
            data["mode"] = policy_to_dict(self.mode)
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> TopoConfig:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for an unknown key or a value outside its range.
        """
        data = json.loads(text)
        if isinstance(data.get("mode"), dict):
            data["mode"] = policy_from_dict(data["mode"])
        return cls.from_options(None, data)


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{name}={value!r} is not usable: give {wanted}")
