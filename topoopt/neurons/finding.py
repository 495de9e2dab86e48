"""discover: every group of interchangeable units of a model, found by propagation and passed through the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from topoopt.neurons import cache, fallback, siblings, standin
from topoopt.neurons.candidates import candidates
from topoopt.neurons.gate import Gate
from topoopt.neurons.group import NeuronGroup, Slice, named_tensors
from topoopt.neurons.judging import Verdict, judge, open_gate
from topoopt.neurons.propagation import propagate
from topoopt.neurons.rules import Rule
from topoopt.neurons.unwrapping import unwrap


class Discovery(list[NeuronGroup]):
    """The verified groups, and what was left out with its reason."""

    def __init__(
        self,
        groups: Iterable[NeuronGroup] = (),
        *,
        frozen: Mapping[str, str] | None = None,
        unverified: Mapping[str, str] | None = None,
        coverage: float = 0.0,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(groups)
        self.frozen = dict(frozen or {})
        """ "<parameter>[dim]" -> why its axis cannot be permuted."""
        self.unverified = dict(unverified or {})
        """Group name -> why the gate refused it."""
        self.coverage = coverage
        """Share of the model's parameters that belong to some group."""
        self.notes = tuple(notes)

    def __str__(self) -> str:
        width = max((len(group.name) for group in self), default=4)
        lines = [f"{'group':<{width}}  {'kind':<9}  {'n':>6}  slices"]
        for group in self:
            parts = ", ".join(_where(s) for s in group.slices[:4])
            more = f", and {len(group.slices) - 4} more" if len(group.slices) > 4 else ""
            lines.append(f"{group.name:<{width}}  {group.kind:<9}  {group.n:>6}  {parts}{more}")
        lines.append(f"{len(self)} groups, {self.coverage:.0%} of the parameters in some group")
        lines += [f"not verified: {name}: {reason}" for name, reason in self.unverified.items()]
        lines += [f"frozen: {count} dimensions: {why}" for why, count in Counter(self.frozen.values()).most_common()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def discover(model: nn.Module, *args: Any, extra_rules: Mapping[str, Rule] | None = None, **kwargs: Any) -> Discovery:
    """Find all permutation symmetries of `model`, given example inputs of one forward.

    Axes are propagated through the exported graph (`topoopt.neurons.propagation`); when the export fails, candidates come
    from module types, names and shapes. All pass the same gate, and only verified groups are returned. The model is left
    as it was: weights, gradients, modes, buffers and the global random generators.

    Args:
        model: any module; wrappers (compile, data parallel) are stripped.
        args: positional inputs of an example forward.
        extra_rules: rules for operators by name, over the built-in ones (see `topoopt.neurons.rules`).
        kwargs: keyword inputs of the example forward.

    Raises:
        DiscoveryError: when the model cannot be run on these inputs or copied for verification.
    """
    own = unwrap(model)
    key = None if extra_rules else cache.key(own, args, kwargs)
    saved = cache.load(key)
    if saved is not None:
        return Discovery(**saved)
    notes: list[str] = []
    frozen: dict[str, str] = {}
    try:
        propagated = propagate(own, args, kwargs, extra_rules)
        found = candidates(own, propagated.values)
        groups, frozen = found.groups, found.frozen
        for name, count in propagated.unknown.items():
            notes.append(f"the operator {name} has no rule; {count} of its calls froze what they touch")
    except Exception as error:  # torch.export raises whatever the model's code does under tracing
        notes.append(
            f"the model could not be exported ({_first_line(error)}): candidates are by module types and shapes"
        )
        groups = fallback.candidates(own)
    if standin.has_no_data(own):
        verdict = _judge_by_sibling(own, args, kwargs, groups)
        notes.append("the model has no data: its groups were compared with the verified ones of a small sibling")
    else:
        gate, said = open_gate(own, args, kwargs)
        verdict = _with_siblings(own, gate, judge(gate, groups))
        notes += said
    result = {
        "groups": verdict.passed,
        "frozen": frozen,
        "unverified": verdict.rejected,
        "coverage": _coverage(own, verdict.passed),
        "notes": tuple(notes),
    }
    cache.save(key, result)
    return Discovery(**result)


def _with_siblings(model: nn.Module, gate: Gate, verdict: Verdict) -> Verdict:
    """What passed, and of each bank of modules side by side the first guess that passes too."""
    passed, rejected = list(verdict.passed), dict(verdict.rejected)
    abreast = [bank for bank in siblings.banks(model) if not gate.in_a_row(bank.members)]
    waiting = [siblings.guesses(model, bank) for bank in abreast]
    while waiting:  # one guess of each bank at a time: together they cost one forward
        tried = judge(gate, [guesses[0] for guesses in waiting])
        passed += tried.passed
        rejected = tried.rejected | rejected  # of several reasons the first guess's
        names = {group.name for group in tried.passed}
        waiting = [guesses[1:] for guesses in waiting if guesses[0].name not in names and guesses[1:]]
    found = {group.name for group in passed}
    return Verdict(passed, {name: reason for name, reason in rejected.items() if name not in found})


def _judge_by_sibling(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], groups: list[NeuronGroup]
) -> Verdict:
    """Groups pass that a small model of the same class has too, verified on its numbers."""
    small = standin.sibling(model)
    if small is None:
        return Verdict([], {g.name: "the model has no data, and no configuration to build a small one" for g in groups})
    args, kwargs = standin.inputs(args, kwargs)
    known = {standin.signature(group) for group in discover(small, *args, **kwargs)}
    passed = [group for group in groups if standin.signature(group) in known]
    banks = [siblings.guesses(model, bank) for bank in siblings.banks(model)]
    passed += [g for guesses in banks for g in guesses if g.n > 1 and standin.signature(g) in known]
    missing = "a small model of the same class has no such group"
    return Verdict(passed, {g.name: missing for g in groups if standin.signature(g) not in known})


def _coverage(model: nn.Module, groups: list[NeuronGroup]) -> float:
    """Share of the parameters that belong to some group; each tensor counts by its best covered dimension."""
    tensors = named_tensors(model)
    parameters = dict(model.named_parameters())
    best: dict[str, float] = {}
    for group in groups:
        for s in group.slices:
            share = 1.0 if s.siblings else group.n * s.outer * s.inner / tensors[s.tensor].shape[s.dim]
            for name in s.tensors:
                if name in parameters:
                    best[name] = max(best.get(name, 0.0), share)
    total = sum(p.numel() for p in parameters.values())
    return sum(share * parameters[name].numel() for name, share in best.items()) / total if total else 0.0


def _where(s: Slice) -> str:
    return f"{s.tensor} and its {len(s.siblings) - 1} siblings" if s.siblings else f"{s.tensor}[{s.dim}]"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
