"""Every optimizer under DDP and FSDP2: report leaves no trace, steering is its factors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

INTEGRATIONS = str(Path(__file__).parents[1] / "integrations")
UNSTEERED = ("LBFGS", "Rprop", "Lion", "SparseAdam")  # their steps do not follow a rate, or have no r to steer by
WITHOUT_SPECTRAL = (
    "Lion",
    "LBFGS",
    "Rprop",
    "SparseAdam",
)  # steps by signs, and of a closure's own making: no Jacobian
REFUSED = {
    "ddp": {},
    "fsdp": {
        "SparseAdam": "a shard has no sparse gradient",
        "LBFGS": "it flattens gradients of several shards into one",
        "Rprop": "it writes into shards by index",
        "Adafactor": "it takes norms of shards in place",
        "transformers-Adafactor": "it takes means of shards in place",
    },
}
"""What torch itself cannot do; the bare run is asserted to fail, so that this table cannot grow old."""


def parallel(model, kind, world):
    """The model as its user would wrap it."""
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (world,)))


def pieces(model, optimizer):
    """All weights and all tensors of the optimizer's state, this rank's parts."""
    tensors = [*model.parameters()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return [t.detach().to_local().clone() if hasattr(t, "to_local") else t.detach().clone() for t in tensors]


def same(one, other):
    """Whether two runs ended in the same bits."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def one_run(rank, world, kind, name, *, measured=False, factors=None, **options):
    """Train with optimizer `name`; returns the ends, the factors, and what is wrong with the measurements."""
    import test_integrations_matrix as plain

    model, _, batches = plain.setting(name)
    wrapped = parallel(model, kind, world)
    sparse = name == "SparseAdam"
    base = plain.MAKERS[name](list(model.first.parameters() if sparse else model.parameters()))
    # LBFGS asks the loss how often to evaluate: with losses of their own, ranks of even the bare run wait for each other.
    mine = slice(None) if name == "LBFGS" else slice(rank, None, world)
    batches = [(x[mine], y[mine]) for x, y in batches]
    topo, seen, taken = None, [], []
    if measured:
        criterion = nn.CrossEntropyLoss()
        x, y = batches[0]
        settings = {"every": plain.EVERY, "budget": None, "homology": 0, "products": 3, "per_group": False, **options}
        topo = plain.TopoOptimizer(base, wrapped, loss=lambda: criterion(wrapped(x), y), **settings)
        assert topo is base  # so there is one object to step, and nothing else to try
    elif factors is not None:
        plain.scale_by(base, iter(factors))

    def note(_):
        seen.append(topo is not None and topo.measured)
        taken.append(1.0 if topo is None else topo.lr_scale)

    scheduler = lr_scheduler.LambdaLR(base, lambda step: 1 / (1 + 0.1 * step))
    train(wrapped, base, batches, scheduler, note, closure=name == "LBFGS")
    return pieces(model, base), taken, "" if topo is None else trouble(topo, name, seen)


def train(model, optimizer, batches, scheduler, note, *, closure):
    """The user's loop, `note` after every step."""
    criterion = nn.CrossEntropyLoss()
    for x, y in batches:

        def evaluate(x=x, y=y):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        note(optimizer)
        scheduler.step()


def assert_well_measured(topo, name, seen):
    """The steps that were due are measured, r is there where it is defined, and nothing failed on the way."""
    import test_integrations_matrix as plain

    assert [step for step, measured in enumerate(seen) if measured] == list(range(0, plain.STEPS, plain.EVERY))
    assert topo.last is not None
    assert topo.last.groups, topo.last.skipped
    assert {key for key in topo.last.counts if key.startswith("fault/")} == set(), topo.last.skipped
    assert ("spectral" in topo.last.skipped) == (name in WITHOUT_SPECTRAL), topo.last.skipped


def trouble(topo, name, seen):
    """What is wrong with the measurements of a run, or nothing."""

    try:
        assert_well_measured(topo, name, seen)
    except AssertionError as error:
        return str(error)
    finally:
        topo.detach()
    return ""


def all_of(rank, world, kind):
    """Every optimizer in one start of the processes; returns what went wrong, by name."""
    sys.path.insert(0, INTEGRATIONS)
    import test_integrations_matrix as plain

    wrong = {}
    for name in plain.MAKERS:
        if name in REFUSED[kind]:
            wrong[name] = ""
            try:
                one_run(rank, world, kind, name)
            except (RuntimeError, NotImplementedError, ValueError, AttributeError, TypeError) as error:
                wrong[name] = f"{type(error).__name__}: {error}"
            continue
        bare, _, _ = one_run(rank, world, kind, name)
        ends, _, problem = one_run(rank, world, kind, name, measured=True)
        if problem or not same(bare, ends):
            wrong[name] = problem or "another run than the bare one"
    for name in plain.MAKERS:
        if name in REFUSED[kind] or name in UNSTEERED:
            continue
        ends, factors, problem = one_run(rank, world, kind, name, measured=True, mode="hold", estimator="spectral")
        bare, _, _ = one_run(rank, world, kind, name, factors=factors)
        if all(factor == 1 for factor in factors) or problem or not same(bare, ends):
            wrong[f"{name}, steered"] = problem or f"another run than with the factors {factors}"
        wrong[f"{name}, factors"] = factors
    return wrong


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_every_optimizer_is_the_bare_run(launch, kind):
    ranks = launch(all_of, 2, kind)
    for wrong in ranks:
        for name, reason in REFUSED[kind].items():
            assert wrong.pop(name), f"torch runs {name} now, though {reason!r} is claimed"
        factors = {key: value for key, value in wrong.items() if key.endswith("factors")}
        assert factors == {key: value for key, value in ranks[0].items() if key.endswith("factors")}
        assert {key: value for key, value in wrong.items() if key not in factors} == {}
