"""What must hold on a device; collected by test_device.py, in a process of its own."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerator import DEVICE, Wait, waits
from device_runs import OPTIMIZERS, batches, network, train, weights, wrapped
from torch import nn
from torch.utils._pytree import tree_map

from topoopt import discover, verify

CPU = torch.device("cpu")
STEPS = 10
READING, MEASUREMENT = 4, 8
"""Waits of the training thread that one warm reading, or one measurement, may cost: of any number of groups."""


def told(waits: list[Wait]) -> str:
    return "\n".join(str(wait) for wait in waits)


def followed(optimizer: Any, found: dict[int, tuple[str, list[Wait]]]) -> Callable[[list[Wait]], None]:
    """Takes down each step: what was done at it, and what the host waited for."""
    known = [0]

    def after(seen: list[Wait]) -> None:
        read, known[0] = len(optimizer.readings) > known[0], len(optimizer.readings)
        found[len(found)] = "measurement" if optimizer.measured else "reading" if read else "nothing", seen

    return after


def test_the_device_counts_what_the_host_waits_for() -> None:
    import accelerator

    x, before = torch.randn(3).to(DEVICE), len(accelerator.WAITS)
    float(x.sum()), x.tolist(), x.cpu(), bool((x > 9).any()), x.nonzero(), x[x > 0], x.to("cpu", non_blocking=True)
    asked = [wait.what for wait in accelerator.WAITS[before:]]
    assert asked == ["item", "tolist", "copy to host", "item", "nonzero", "index by a mask or a host's indices",
                     "copy to host, later"]  # fmt: skip
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.randn(3)


def degree(rule: str) -> int:
    """Highest degree of homology: its process takes longest to start, so one rule must do."""
    return 1 if rule == "SGD" else 0


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["report", "preserve", "simplify", "hold"])
def test_every_mode_and_every_rule(mode: str, rule: str) -> None:
    model = network().to(DEVICE)
    optimizer = wrapped(
        model, OPTIMIZERS[rule](model.parameters(), DEVICE), mode=mode, every=10, wait=True, homology=degree(rule)
    )
    found: dict[int, tuple[str, list[Wait]]] = {}
    train(model, optimizer, STEPS, DEVICE, watch=waits, after=followed(optimizer, found))
    last = optimizer.measure()
    assert not last.skipped.keys() - {"phase"}, last.skipped
    assert not last.counts.get("faults"), last.counts
    assert last.groups
    assert all(len(group.diagrams) == 1 + degree(rule) for group in last.groups.values())
    assert all(reading.r > 0 for reading in optimizer.readings), [reading.reason for reading in optimizer.readings]
    ordinary = [seen for what, seen in found.values() if what == "nothing"]
    assert ordinary or mode != "report"
    assert not any(ordinary), told([wait for seen in ordinary for wait in seen])


OTHERS = ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "Rprop"]
"""The rest of torch's rules. SparseAdam takes none of these gradients; ASGD calls `as_tensor`, which this device has not."""


def other(rule: str, *, measured: bool) -> tuple[nn.Module, Any]:
    model = network(3).to(DEVICE)
    own = [p for p in model.parameters() if p.ndim == 2] if rule == "Muon" else list(model.parameters())
    plain = getattr(torch.optim, rule)(own, lr=1e-2, **({"max_iter": 2} if rule == "LBFGS" else {}))
    return model, wrapped(model, plain, wait=True, homology=0) if measured else plain


def closed(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


@pytest.mark.parametrize("rule", OTHERS)
def test_the_other_rules_of_torch(rule: str) -> None:
    bare, plain = other(rule, measured=False)
    model, optimizer = other(rule, measured=True)
    found: dict[int, tuple[str, list[Wait]]] = {}
    after = followed(optimizer, found)
    for x, y in batches(6, DEVICE):
        for one, its in ((bare, plain), (model, optimizer)):
            closure = functools.partial(closed, one, its, x, y)
            if rule != "LBFGS":
                closure()
            with waits() as seen:
                its.step(closure) if rule == "LBFGS" else its.step()
        after(seen)
    assert not optimizer.last.counts.get("faults"), optimizer.last.counts
    assert optimizer.last.groups
    assert all(reading.r > 0 or reading.reason for reading in optimizer.readings)
    ordinary = [seen for what, seen in found.values() if what == "nothing" and rule != "LBFGS"]  # its own loop reads
    assert not any(ordinary), told([wait for seen in ordinary for wait in seen])
    assert all(torch.equal(a, b) for a, b in zip(weights(bare), weights(model), strict=True))


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_report_mode_is_bit_for_bit(rule: str) -> None:
    runs = []
    for measured in (False, True):
        torch.manual_seed(3)
        model = network(dropout=0.2).to(DEVICE)
        plain = OPTIMIZERS[rule](model.parameters(), DEVICE)
        optimizer = wrapped(model, plain, homology=degree(rule)) if measured else plain
        train(model, optimizer, STEPS, DEVICE, clip=1.0)
        if measured:
            assert all(reading.r > 0 for reading in optimizer.readings), [r.reason for r in optimizer.readings]
        runs.append([*weights(model), torch.rand(4), *(t.cpu() for t in states(plain))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("keep", ["none", "host", "device"])
def test_clouds_are_kept_where_they_are_asked_for(keep: str) -> None:
    found = {}
    for device in (CPU, DEVICE):
        model = network().to(device)
        optimizer = wrapped(model, OPTIMIZERS["SGD"](model.parameters(), device), keep=keep, wait=True)
        train(model, optimizer, 9, device)
        assert optimizer.measured
        assert not optimizer.last.skipped
        found[device.type] = optimizer.last
    ours, host = found["accel"], found["cpu"]
    for name, group in host.groups.items():
        same = ours.groups[name]
        assert same.distortion_total == pytest.approx(group.distortion_total, rel=1e-3, nan_ok=True)
        assert (same.distortion_total[0] == same.distortion_total[0]) is (keep != "none")
        assert same.gain == pytest.approx(group.gain, rel=1e-3)
        assert [len(d) for d in same.diagrams] == [len(d) for d in group.diagrams]
    assert ours.spectral.r == pytest.approx(host.spectral.r, rel=1e-2)


@pytest.mark.parametrize(
    ("rule", "groups", "keep"),
    [("SGD", 1, "none"), ("capturable AdamW", 1, "device"), ("fused AdamW", 4, "host"), ("AdamW", 4, "device")],
)
def test_few_waits_however_many_groups(rule: str, groups: int, keep: str) -> None:
    model = network(groups).to(DEVICE)
    optimizer = wrapped(model, OPTIMIZERS[rule](model.parameters(), DEVICE), keep=keep)
    found: dict[int, tuple[str, list[Wait]]] = {}
    train(model, optimizer, 22, DEVICE, clip=0.1, watch=waits, after=followed(optimizer, found))
    first = found.pop(0)
    assert first[0] == "measurement"
    assert len(optimizer.last.groups) == groups
    copied = sum(wait.asked[0].startswith("neurons/") for wait in first[1])  # the model that neurons are found on
    assert len(first[1]) - copied <= 2 * MEASUREMENT, told(first[1])
    assert {what for what, _ in found.values()} >= {"reading", "measurement"}
    # Every twentieth reading, and after a jump, one is taken in full.
    full = [s for s, (what, seen) in found.items() if what == "reading" and any("lanczos" in told([w]) for w in seen)]
    for step, (what, seen) in found.items():
        bound = {"nothing": 0, "reading": MEASUREMENT if step in full else READING, "measurement": MEASUREMENT}
        assert len(seen) <= bound[what], f"step {step}, a {what}:\n{told(seen)}"
    assert len(full) <= len(found) // 4


@pytest.mark.parametrize("rule", ["momentum", "fused AdamW", "capturable AdamW"])
def test_checkpoint_and_resume(rule: str) -> None:
    model = network().to(DEVICE)
    optimizer = wrapped(model, OPTIMIZERS[rule](model.parameters(), DEVICE), mode="hold", homology=0)
    train(model, optimizer, 6, DEVICE)
    file = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network().to(DEVICE)
    again.load_state_dict(saved["model"])
    resumed = wrapped(again, OPTIMIZERS[rule](again.parameters(), DEVICE), mode="hold", homology=0)
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, 4, DEVICE)
    assert resumed.readings
    assert resumed.readings[0].step >= 6
    assert all(p.device == DEVICE for p in again.parameters())


def test_a_mix_of_devices_raises_for_the_user_and_the_run_goes_on() -> None:
    model = network().to(DEVICE)
    optimizer = wrapped(model, OPTIMIZERS["AdamW"](model.parameters(), DEVICE), homology=0)
    train(model, optimizer, 2, DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        train(model, optimizer, 1, CPU)
    train(model, optimizer, 6, DEVICE)
    assert optimizer.last.step >= 4
    assert not optimizer.last.counts.get("faults")


class Apart(nn.Module):
    """The perceptron of three layers, the first on the host: its first group lies on both devices."""

    def __init__(self, *, to: torch.device = DEVICE) -> None:
        super().__init__()
        self.first, _, self.second, _, self.head = copy.deepcopy(network())
        self.to_second = to
        self.second.to(to), self.head.to(to)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh().to(self.to_second)).tanh())


@pytest.mark.parametrize(
    ("mode", "rule", "keep"),
    [("report", "AdamW", "none"), ("report", "SGD", "device"), ("preserve", "momentum", "host"),
     ("simplify", "RMSprop", "none"), ("hold", "SGD", "none")],
)  # fmt: skip
def test_a_model_over_two_devices(mode: str, rule: str, keep: str) -> None:
    found = []
    for to in (DEVICE, CPU):
        model, steps = Apart(to=to), {}
        optimizer = wrapped(
            model, OPTIMIZERS[rule](model.parameters(), to), mode=mode, keep=keep, wait=True, reading_products=8
        )
        after = followed(optimizer, steps)
        for x, y in batches(13, CPU):
            optimizer.zero_grad()
            with waits() as seen:
                nn.functional.cross_entropy(model(x), y.to(to)).backward()
                optimizer.step()
            after(seen)
        assert optimizer.measured
        assert not optimizer.last.skipped.keys() - {"phase"}, optimizer.last.skipped
        assert not optimizer.last.counts.get("faults")
        ordinary = [seen for what, seen in steps.values() if what == "nothing"]
        assert not any(ordinary), told([wait for seen in ordinary for wait in seen])
        found.append(optimizer)
    ours, host = found
    assert [r.r for r in ours.readings] == pytest.approx([r.r for r in host.readings], rel=2e-2)
    assert ours.last.groups.keys() == host.last.groups.keys()
    for name, group in host.last.groups.items():
        assert ours.last.groups[name].gain == pytest.approx(group.gain, rel=1e-3)
        assert [len(d) for d in ours.last.groups[name].diagrams] == [len(d) for d in group.diagrams]


def test_groups_over_two_devices() -> None:
    model, x = Apart(), batches(1, CPU)
    inputs, _ = next(x)
    before = [p.detach().cpu().clone() for p in model.parameters()]
    groups = discover(model, inputs)
    assert {(group.n, tuple(group.points(model).shape)) for group in groups} == {(12, (12, 23)), (12, (12, 16))}
    assert all(group.points(model).device == DEVICE for group in groups)
    assert all(verify(model, group, inputs) < 1e-9 for group in groups)
    out = model(inputs).cpu()
    for group in groups:
        group.permute(model, torch.arange(group.n).roll(1))
    assert torch.allclose(model(inputs).cpu(), out, atol=1e-5)
    for group in groups:
        points = group.points(model)
        group.scatter(model, points[torch.arange(group.n).roll(-1).to(DEVICE)])
    assert all(torch.equal(p.detach().cpu(), was) for p, was in zip(model.parameters(), before))
