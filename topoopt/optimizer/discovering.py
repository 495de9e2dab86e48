"""Which neuron groups a run measures: found or given, verified, selected, and every omission with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.neurons import NeuronGroup, admitted, discover, optimizer_coverage, parameter_names, select, unwrap
from topoopt.optimizer.unsharding import unsharded


@dataclass(frozen=True)
class Found:
    """The groups to measure, and what was left out."""

    groups: list[NeuronGroup]
    skipped: dict[str, str] = field(default_factory=dict)
    coverage: tuple[str, ...] = ()
    final: bool = True
    """False: no forward had been seen yet, so discovery is tried again at the next measurement."""

    @classmethod
    def failed(cls, reason: str, *, final: bool) -> Found:
        """No groups, with the reason."""
        return cls([], {"groups": reason}, final=final)


def find_groups(
    model: nn.Module,
    optimizer: Optimizer,
    config: TopoConfig,
    given: list[NeuronGroup] | None,
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None,
) -> Found:
    """Find or check the groups of `model` on `inputs` (args, kwargs) and keep those that this optimizer moves."""
    if inputs is None:
        return Found.failed(
            "no forward of the model was seen before this step, so its neurons are not known yet; build TopoOptimizer "
            "before the first forward, or set example_inputs",
            final=False,
        )
    args, kwargs = inputs
    skipped: dict[str, str] = {}
    if given is None:
        discovery = discover(unsharded(unwrap(model)), *args, **kwargs)
        skipped |= {name: f"not verified: {reason}" for name, reason in discovery.unverified.items()}
        candidates = list(discovery)
    else:
        candidates, rejected = _pass_gate(model, given, args, kwargs)
        skipped |= rejected
    groups, unselected = select(candidates, config.include, config.exclude)
    skipped |= unselected
    moving, still = _moved_by(model, optimizer, groups)
    skipped |= still
    if not moving:
        skipped["groups"] = (
            f"none of the {len(candidates)} neuron groups found is left to measure"
            if candidates
            else (
                "the model has no neurons: no set of units that can be permuted without changing its function was found"
            )
        )
    coverage = optimizer_coverage(optimizer)
    return Found(moving, skipped, () if coverage.covered else (f"outside the theory: {coverage.reason}",))


def _pass_gate(
    model: nn.Module, given: list[NeuronGroup], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[NeuronGroup], dict[str, str]]:
    verdict = admitted(unsharded(unwrap(model)), given, args, kwargs)
    return verdict.passed, {name: f"not a symmetry: {reason}" for name, reason in verdict.rejected.items()}


def _moved_by(
    model: nn.Module, optimizer: Optimizer, groups: list[NeuronGroup]
) -> tuple[list[NeuronGroup], dict[str, str]]:
    """Leave out groups of which every parameter is frozen or held by another optimizer: their points never move."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    moved = {
        name for name, p in unwrap(model).named_parameters(remove_duplicate=False) if p.requires_grad and id(p) in held
    }
    still = {
        group.name: "none of its parameters is moved by this optimizer (frozen, or held by another one)"
        for group in groups
        if moved.isdisjoint(parameter_names(group))
    }
    return [group for group in groups if group.name not in still], still
