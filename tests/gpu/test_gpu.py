"""The whole wrapper on an accelerator, whichever torch finds (`make test-gpu`), and the same bodies on the CPU in every run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from device_runs import OPTIMIZERS, accelerator, batches, network, train, weights, wrapped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

READING, MEASUREMENT = 4, 8
"""Synchronisations that one warm reading, or one measurement, may cost."""


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu":
        return torch.device("cpu")
    return accelerator()


def amp(device: torch.device, dtype: torch.dtype | None) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def fit(model: nn.Module, optimizer: Any, device: torch.device, dtype: torch.dtype | None, steps: int = 9) -> None:
    """Train with the forward in `dtype`."""
    for x, y in batches(steps, device):
        optimizer.zero_grad()
        with amp(device, dtype)():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()


def assert_measured(optimizer: Any) -> None:
    assert optimizer.readings
    assert all(reading.r > 0 for reading in optimizer.readings), [reading.reason for reading in optimizer.readings]
    assert optimizer.last.groups
    assert not optimizer.last.skipped.keys() - {"phase"}, optimizer.last.skipped
    assert not optimizer.last.counts.get("faults"), optimizer.last.counts


@pytest.mark.parametrize("rule", ["momentum", "fused AdamW", "capturable AdamW"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_report_mode_is_bit_for_bit_and_measures(device: torch.device, rule: str, dtype: torch.dtype | None) -> None:
    if rule == "capturable AdamW" and device.type == "cpu":
        pytest.skip("capturable is for accelerators")
    runs = []
    for measured in (False, True):
        torch.manual_seed(3)
        model = network(dropout=0.2).to(device)
        plain = OPTIMIZERS[rule](model.parameters(), device)
        optimizer = wrapped(model, plain, keep="host") if measured else plain
        fit(model, optimizer, device, dtype)
        runs.append([*weights(model), torch.rand(3, device=device).cpu()])
        if measured:
            assert_measured(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_readings_are_those_of_the_cpu(device: torch.device) -> None:
    found = []
    for place in (torch.device("cpu"), device):
        model = network(3).to(place)
        optimizer = wrapped(model, OPTIMIZERS["AdamW"](model.parameters(), place), homology=0)
        fit(model, optimizer, place, None)
        found.append([reading.r for reading in optimizer.readings])
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("mode", ["preserve", "simplify", "hold"])
def test_a_steered_run(device: torch.device, mode: str) -> None:
    model = network().to(device)
    optimizer = wrapped(model, OPTIMIZERS["fused AdamW"](model.parameters(), device), mode=mode)
    fit(model, optimizer, device, None)
    assert_measured(optimizer)


def test_a_compiled_model(device: torch.device) -> None:
    model = network().to(device)
    compiled = torch.compile(model, backend="aot_eager" if device.type == "cpu" else "inductor")
    optimizer = wrapped(compiled, OPTIMIZERS["AdamW"](model.parameters(), device))
    fit(compiled, optimizer, device, None)
    assert_measured(optimizer)


class Attention(nn.Module):
    """One block of attention by a flash kernel, which has no double backward."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.give, self.head = nn.Linear(10, 96), nn.Linear(32, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.take(x[:, None, :] * torch.ones(8, 1, device=x.device))
            .view(len(x), 8, 3, 2, 16)
            .permute(2, 0, 3, 1, 4)
        )
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.give(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_flash_attention(device: torch.device) -> None:
    model = Attention().to(device)
    optimizer = wrapped(model, OPTIMIZERS["AdamW"](model.parameters(), device), homology=0)
    # On an accelerator flash kernels are in 16 bits only, in whose rounding differences are lost: r is unknown, and says why.
    dtype = None if device.type == "cpu" else torch.bfloat16
    fit(model, optimizer, device, dtype)
    assert all(reading.r > 0 or reading.reason for reading in optimizer.readings)
    assert all(reading.r > 0 for reading in optimizer.readings) or dtype is not None
    assert not optimizer.last.counts.get("faults"), optimizer.last.counts


@contextmanager
def synchronisations(device: torch.device) -> Iterator[list[str]]:
    """What makes the host wait inside the block, as the device's own debug mode tells it."""
    module = torch.get_device_module(device)
    if not hasattr(module, "set_sync_debug_mode"):
        pytest.skip(f"{device.type} does not tell what the host waits for")
    found: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            module.set_sync_debug_mode("default")
    found += [str(one.message) for one in told if "synchroniz" in str(one.message)]


def test_few_synchronisations_and_none_on_ordinary_steps(device: torch.device) -> None:
    model = network(4).to(device)
    # Homology's reads are its own thread's, which the debug mode does not tell apart.
    options = {"homology": 0, "every": 20}
    optimizer = wrapped(model, OPTIMIZERS["fused AdamW"](model.parameters(), device), **options)
    ready = [(x.clone(), y.clone()) for x, y in batches(60, device)]
    known = 0
    for step, (x, y) in enumerate(ready):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with synchronisations(device) as found:
            optimizer.step()
        read, known = len(optimizer.readings) > known, len(optimizer.readings)
        bound = MEASUREMENT if optimizer.measured else READING if read else 0
        assert len(found) <= bound or step == 0, (step, found)


def waiting(step: Callable[[], Any]) -> Counter[str]:
    """What of a call makes the host wait, by the profiler: numbers read, copies to the host, synchronisations."""
    with torch.profiler.profile(activities=torch.profiler.supported_activities(), acc_events=True) as profile:
        step()
    told = [event.name for event in profile.events()]
    return Counter(n for n in told if "ynchronize" in n or "_local_scalar_dense" in n or "DtoH" in n)


def test_an_ordinary_step_waits_for_what_the_bare_one_does_by_the_profiler(device: torch.device) -> None:
    runs: list[list[Counter[str]]] = []
    ordinary: list[int] = []
    for measured in (False, True):
        model = network(4).to(device)
        optimizer: Any = OPTIMIZERS["fused AdamW"](model.parameters(), device)
        if measured:
            optimizer = wrapped(model, optimizer, every=20, homology=0)
        seen, known = [], 0
        for step, (x, y) in enumerate([(x.clone(), y.clone()) for x, y in batches(16, device)]):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            seen.append(waiting(optimizer.step))
            if measured and len(optimizer.readings) == known and not optimizer.measured:
                ordinary.append(step)
            known = len(optimizer.readings) if measured else 0
        runs.append(seen)
    bare, ours = runs
    assert ordinary
    assert [ours[step] for step in ordinary] == [bare[step] for step in ordinary]
    assert any(ours[step] != bare[step] for step in range(16) if step not in ordinary)  # a reading is seen


def test_training_goes_on_where_a_batch_is_elsewhere(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("there is no elsewhere")
    model = network().to(device)
    optimizer = wrapped(model, OPTIMIZERS["AdamW"](model.parameters(), device))
    with pytest.raises(RuntimeError):
        train(model, optimizer, 1, torch.device("cpu"))
    fit(model, optimizer, device, None)
    assert_measured(optimizer)
