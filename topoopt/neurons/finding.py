"""discover: every group of interchangeable units of a model, found by propagation and passed through the gate."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from topoopt.errors import DiscoveryError
from topoopt.neurons import fallback, siblings, standin
from topoopt.neurons.candidates import candidates
from topoopt.neurons.copying import at_rest
from topoopt.neurons.example import Example, few_rows
from topoopt.neurons.gate import Gate, tensors_in
from topoopt.neurons.group import NeuronGroup, Slice, named_tensors, unwrap
from topoopt.neurons.judging import NO_EFFECT, GateResult, judge, open_gate
from topoopt.neurons.propagation import propagate
from topoopt.neurons.recording import Recording, recorded
from topoopt.neurons.rules import Rule
from topoopt.neurons.running import Call, alone, apart, run
from topoopt.neurons.watching import NotApart


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


@alone()
def discover(
    model: nn.Module,
    *args: Any,
    call: Call | str | None = None,
    extra_rules: Mapping[str, Rule] | None = None,
    **kwargs: Any,
) -> Discovery:
    """Find all permutation symmetries of `model`, given example inputs of one forward.

    One copy of the model is made (float64, on the host), given random weights and run once; axes are propagated through
    the operators of that run (`topoopt.neurons.propagation`), and what they leave free passes the gate on the same copy.
    The model is only read: nothing of it is run, and no weight, gradient, mode, hook, attribute, generator or default is
    changed on the way.

    Args:
        model: any module; wrappers (compile, data parallel) are stripped.
        args: positional inputs of an example run.
        call: how the model is used, where not by calling it: a method's name (`call="act"`), or a function that is given
            the copy and the inputs and returns the output (`call_parts` for submodules called one by one).
        extra_rules: rules for operators by name, over the built-in ones (see `topoopt.neurons.rules`).
        kwargs: keyword inputs of the example run.

    Raises:
        DiscoveryError: when the model cannot be run on these inputs or copied for verification. One that cannot be run
            without touching what all threads share (draws from `random` or numpy's generator, a live module in a global)
            is not run: it has no groups, and `notes` says why.
    """
    own = unwrap(model)
    if standin.has_no_data(own):
        return _without_data(own, args, kwargs, call, extra_rules)
    try:
        found = _on_few_rows(own, args, kwargs, call, extra_rules) or _on_inputs(own, args, kwargs, call, extra_rules)
    except NotApart as error:
        return Discovery(unverified={group.name: str(error) for group in fallback.candidates(own)}, notes=[str(error)])
    if sys.getprofile() is not None:
        said = "this thread is being profiled: draws from Python's and numpy's generators were not watched for"
        found.notes = (*found.notes, said)
    example = Example.of(args, kwargs, call)  # for `compact`, which compares on it
    found[:] = [replace(group, example=example) for group in found]
    return found


def _on_few_rows(
    own: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    call: Call | str | None,
    extra_rules: Mapping[str, Rule] | None,
) -> Discovery | None:
    """Discovery on the first rows of the batch, which takes less memory; None where they do not do for all of it.

    They do not where the model cannot be run on them, where they leave some of it without effect (an expert to which no row
    is sent), or where the run took a branch and did not use all parameters.
    """
    few = few_rows(args, kwargs)
    if few is None:
        return None
    try:
        gate, said = open_gate(own, *few, call)
    except DiscoveryError:
        return None
    used = {name for kind, name, _ in gate.recording.leaves.values() if kind == "parameter"}
    if gate.recording.read and used != {name for name, _ in gate.model.named_parameters()}:
        return None
    found, silent = _through(own, gate, said, extra_rules)
    return None if silent else found


def _on_inputs(
    own: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    call: Call | str | None,
    extra_rules: Mapping[str, Rule] | None,
) -> Discovery:
    gate, said = open_gate(own, args, kwargs, call)
    return _through(own, gate, said, extra_rules)[0]


def _through(
    own: nn.Module, gate: Gate, said: Sequence[str], extra_rules: Mapping[str, Rule] | None
) -> tuple[Discovery, bool]:
    """Candidates of the gate's run, passed through it; and whether some had no effect on the output."""
    groups, frozen, notes = _proposed(gate.model, gate.recording, extra_rules)
    verdict = _with_siblings(own, gate, judge(gate, groups))
    if notes:  # an operator froze what it does not know
        verdict = _with_guesses(gate, verdict)
    silent = any(reason == NO_EFFECT for reason in verdict.rejected.values())
    return _discovery(own, verdict, frozen, [*notes, *said]), silent


def _proposed(
    copied: nn.Module, recording: Recording, extra_rules: Mapping[str, Rule] | None
) -> tuple[list[NeuronGroup], dict[str, str], list[str]]:
    """Candidates from a recorded run, what is frozen, and which operators nobody could speak for."""
    propagated = propagate(recording, extra_rules)
    found = candidates(copied, propagated.values)
    unknown = propagated.unknown.items()
    notes = [f"the operator {name} has no rule; {count} of its calls froze what they touch" for name, count in unknown]
    if recording.handed_out:
        notes.append(f"{recording.handed_out} tensors were handed to numpy, which froze what they are made of")
    return found.groups, found.frozen, notes


def _discovery(model: nn.Module, verdict: GateResult, frozen: Mapping[str, str], notes: Sequence[str]) -> Discovery:
    coverage = _coverage(model, verdict.passed)
    tensors = named_tensors(model)
    groups = [
        replace(g, slices=tuple(replace(s, shape=tuple(tensors[s.tensor].shape)) for s in g.slices))
        for g in verdict.passed
    ]
    return Discovery(groups, frozen=frozen, unverified=verdict.rejected, coverage=coverage, notes=notes)


def _without_data(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    call: Call | str | None,
    extra_rules: Mapping[str, Rule] | None,
) -> Discovery:
    """Groups of a model on the meta device, found on a copy there and compared with those of a small sibling."""
    copied = at_rest(model)
    frozen: dict[str, str] = {}
    notes: list[str] = []
    recording = Recording(copied, (args, kwargs))
    try:
        with apart(copied, None), recorded(recording):
            result = run(copied, call, args, kwargs)
        recording.finish(tensors_in(result))
        groups, frozen, notes = _proposed(copied, recording, extra_rules)
    except Exception as error:  # whatever the model's code raises where there are no numbers
        notes.append(f"the model cannot be run without data ({_first_line(error)}): candidates are by module types")
        groups = fallback.candidates(copied)
    verdict = _judge_by_sibling(model, args, kwargs, groups)
    notes.append("the model has no data: its groups were compared with the verified ones of a small sibling")
    return _discovery(model, verdict, frozen, notes)


def _with_siblings(model: nn.Module, gate: Gate, verdict: GateResult) -> GateResult:
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
    return GateResult(passed, {name: reason for name, reason in rejected.items() if name not in found})


def _with_guesses(gate: Gate, verdict: GateResult) -> GateResult:
    """What passed, and what passes of the guesses by types and shapes where nothing else was found."""
    covered = {(name, s.dim) for group in verdict.passed for s in group.slices for name in s.tensors}
    guesses = fallback.candidates(gate.model)
    free = [guess for guess in guesses if covered.isdisjoint((s.tensor, s.dim) for s in guess.slices)]
    more = judge(gate, free).passed if free else []
    found = {group.name for group in more}
    left = {name: reason for name, reason in verdict.rejected.items() if name not in found}
    return GateResult([*verdict.passed, *more], left)


def _judge_by_sibling(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], groups: list[NeuronGroup]
) -> GateResult:
    """Groups pass that a small model of the same class has too, verified on its numbers."""
    small = standin.sibling(model)
    if small is None:
        return GateResult(
            [], {g.name: "the model has no data, and no configuration to build a small one" for g in groups}
        )
    args, kwargs = standin.inputs(args, kwargs)
    known = {standin.signature(group) for group in discover(small, *args, **kwargs)}
    passed = [group for group in groups if standin.signature(group) in known]
    banks = [siblings.guesses(model, bank) for bank in siblings.banks(model)]
    passed += [g for guesses in banks for g in guesses if g.n > 1 and standin.signature(g) in known]
    missing = "a small model of the same class has no such group"
    return GateResult(passed, {g.name: missing for g in groups if standin.signature(g) not in known})


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
