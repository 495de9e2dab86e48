"""r of the step that the user takes, read from its tape: against the dense Jacobian of the step itself, and without a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import real_steps as steps
import torch
from real_steps import LARGE, LOOPS, PASSAGES, RATE, World, built, dense_radius, krylov_radius, network, run, world
from torch import Tensor, nn, optim
from torch.nn import functional as F

from topoopt.curvature import SpectralTracker, Tracked, proximity
from topoopt.errors import MeasurementError

ALL = 400
"""More products than there are weights: the estimate is exact."""


@pytest.fixture(autouse=True)
def the_generator_is_ours() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def kept(one: World) -> dict[str, Any]:
    """All that a reading could touch."""
    return copy.deepcopy(
        {
            "state": {n: t.detach() for n, t in one.model.state_dict(keep_vars=True).items()},
            "grads": [p.grad for p in one.parameters],
            "attributes": [
                {k: v for k, v in vars(m).items() if not k.startswith("_") and k != "config"}
                for m in one.model.modules()
            ],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1:],  # noqa: NPY002
            "python": random.getstate(),
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in one.model.modules()],
            "modes": torch._C._len_torch_function_stack(),
            "recording": torch.is_grad_enabled(),
        }
    )


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    elif not isinstance(a, nn.Module) and not callable(a):
        assert a == b, where


def test_a_compact_memory_goes_on_in_float64() -> None:
    one = built(steps.plain)
    tracker = descent(one, compact=True)
    taped(one, tracker).estimate()
    warm = taped(one, tracker).estimate()
    assert warm is not None
    assert warm.r == pytest.approx(dense_radius(steps.plain), rel=0.02)


def descent(one: World, **options: Any) -> SpectralTracker:
    made = options.pop("make", lambda p: optim.SGD(p, lr=RATE))(one.parameters)
    tracker = SpectralTracker(made, products=ALL, first=ALL, **options)
    one.kept_alive = made  # type: ignore[attr-defined]
    return tracker


def taped(one: World, tracker: SpectralTracker) -> Tracked:
    tape = tracker.tape(one.model, inside=one.inside).start()
    try:
        run(one)
    finally:
        tape.stop()
    assert torch._C._len_torch_function_stack() == 0
    return tracker.taped(tape)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_read_as_it_is_and_left_as_it_is(name: str) -> None:
    make = LOOPS[name]
    truth = krylov_radius(make) if name in LARGE else dense_radius(make)
    bare = built(make)
    run(bare)
    before = kept(bare)
    one = built(make)
    tracked = taped(one, descent(one))
    assert_same(before, kept(one))
    found = tracked.estimate(25 if name in LARGE else None)
    assert_same(before, kept(one))
    assert found.r == pytest.approx(truth, rel=0.01)
    assert not any("not recognised" in note for note in found.notes)


@pytest.mark.parametrize(
    "kind",
    [steps.MomentumEncoder, steps.MomentumEncoderByData, steps.MomentumEncoderAnew],
    ids=lambda kind: kind.__name__,
)
def test_weights_that_a_forward_moves_are_kept_from_the_second_time_on(kind: type[steps.MomentumEncoder]) -> None:
    def make() -> World:
        return steps.momentum_encoder(kind)

    one = built(make)
    tracker = descent(one)
    with pytest.raises(MeasurementError, match=r"moves weights that are not trained \(k.bias, k.weight\)"):
        taped(one, tracker)
    assert_same(kept(built(make, before=1)), kept(one))
    tracked = taped(one, tracker)
    bare = kept(built(make, before=2))
    assert_same(bare, kept(one))
    assert tracked.estimate().r == pytest.approx(dense_radius(make, before=1), rel=0.01)
    assert_same(bare, kept(one))


def test_a_step_in_16_bits_is_that_of_the_given_loss() -> None:
    one = built(steps.plain)
    model, x = one.model.float(), torch.randn(64, 4)
    y = torch.arange(64) % 3

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    one.step = lambda: loss().backward()
    found = taped(one, descent(one)).estimate(20)
    assert found.engine == "double backward"
    given = proximity(optim.SGD(model.parameters(), lr=RATE), loss, products=20, when="upcoming")
    assert found.r == pytest.approx(given.r, rel=0.02)
    full = proximity(optim.SGD(model.parameters(), lr=RATE), lambda: F.cross_entropy(model(x), y), products=20)
    assert found.r == pytest.approx(full.r, rel=0.05)


def test_a_compiled_model() -> None:
    torch.manual_seed(0)
    model, (x, y) = network(), steps.data()
    compiled: Any = torch.compile(model, backend="eager")
    one = world(compiled, lambda: F.cross_entropy(compiled(x), y).backward(), list(model.parameters()))
    run(one)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = taped(one, descent(one)).estimate()
    run(one)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 1
    assert found.r == pytest.approx(dense_radius(steps.plain), rel=0.01)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return Sine.apply(self.first(x))


def test_an_autograd_function_of_ones_own() -> None:
    """Inside the model it is replayed; between the model and the loss torch does not show it, and the reason says so."""

    def inside() -> World:
        m, (x, _) = OwnFunction(), steps.data()
        return world(m, lambda: m(x).square().mean().backward())

    one = built(inside)
    assert taped(one, descent(one)).estimate().r == pytest.approx(dense_radius(inside), rel=0.01)
    model, (x, _) = network(), steps.data()
    outside = world(model, lambda: Sine.apply(model(x)).square().mean().backward())
    with pytest.raises(MeasurementError, match=r"a custom autograd\.Function"):
        taped(outside, descent(outside))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("numpy", "draws from Python's or numpy's generator"),
        ("weights", "weights have been written to since the forward"),
        ("inputs", "was written to after it"),
        ("some", "which inputs to differentiate"),
        ("nothing", "no forward of the model was seen"),
        ("no backward", "no call of backward was seen"),
        ("a mode", "function mode of your own"),
    ],
)
def test_what_cannot_be_followed_is_said(what: str, match: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = network(), steps.data()
    if what == "numpy":
        model.append(Jitter())

    def step() -> None:
        if what == "nothing":
            return
        if what == "a mode":
            with torch.device("cpu"):
                F.cross_entropy(model(x), y).backward()
            return
        loss = (model(x) * (weight := torch.ones(3, dtype=torch.float64))).square().mean()
        if what == "some":
            loss.backward(inputs=[model[0].weight])  # type: ignore[index]
        elif what != "no backward":
            loss.backward()
        if what == "inputs":
            weight.add_(1)
        if what == "weights":
            with torch.no_grad():
                model[0].weight.mul_(1.0)  # type: ignore[index]

    one = world(model, step)
    with pytest.raises(MeasurementError, match=match):
        taped(one, descent(one))


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * np.random.rand())  # noqa: NPY002


def test_a_step_that_raises_leaves_no_mode_and_no_hook() -> None:
    torch.manual_seed(0)
    model, (x, _) = network(), steps.data()

    def step() -> None:
        model(x)
        raise ValueError("one batch too long")

    one = world(model, step)
    with pytest.raises(ValueError, match="too long"):
        taped(one, descent(one))
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_evaluation_and_cleared_gradients_between_are_no_part_of_the_step() -> None:
    def make() -> World:
        m, (x, y) = network(), steps.data()

        def step() -> None:
            (7 * m(x)).square().mean().backward()
            for p in m.parameters():
                p.grad = None
            with torch.no_grad():
                m(x[:3])
            F.cross_entropy(m(x), y).backward()
            with torch.no_grad():
                m(x[:2])

        return world(m, step)

    one = built(make)
    tracked = taped(one, descent(one))
    assert tracked.estimate().r == pytest.approx(dense_radius(make), rel=0.01)
    assert tracked.spectrum.notes == ()


# -- what stands between backward and the step ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PASSAGES)
def test_r_is_of_the_gradient_that_the_step_takes(name: str) -> None:
    """At the first reading, where the step is replayed to compare, at the next, where lengths have to do, and at a warm one."""
    make: Callable[[], World] = PASSAGES[name]
    truth = dense_radius(make)
    one = built(make)
    tracker = descent(one)
    for _ in range(2):
        assert taped(one, tracker).estimate().r == pytest.approx(truth, rel=0.01)
    last = taped(one, tracker)
    by_entries = name in ("clipped by value", "masked", "centralised", "each tensor by itself")
    assert (last.operator is None) == by_entries
    assert last.estimate(20).r == pytest.approx(truth, rel=0.01)


def test_a_hook_of_the_users_on_a_weight_counts_at_every_reading() -> None:
    truth = dense_radius(steps.hooked)
    assert truth != pytest.approx(dense_radius(steps.plain), rel=0.05)
    one = built(steps.hooked)
    tracker = descent(one)
    for _ in range(2):
        assert taped(one, tracker).estimate().r == pytest.approx(truth, rel=0.01)


def test_noise_on_the_gradient_is_named_with_its_size_and_adds_no_curvature() -> None:
    def noisy(m: nn.Module) -> None:
        for p in m.parameters():
            assert p.grad is not None
            p.grad += 0.05 * p.grad.norm() * torch.randn_like(p.grad) / p.numel() ** 0.5

    one = built(steps.after_backward(noisy))
    tracked = taped(one, descent(one))
    (note,) = [note for note in tracked.spectrum.notes if "not recognised" in note]
    assert 0.03 < tracked.spectrum.passage.rest < 0.07
    assert f"{tracked.spectrum.passage.rest:.1%}" in note
    assert tracked.estimate().r == pytest.approx(dense_radius(steps.plain), rel=0.01)


def test_another_gradient_altogether_is_no_reading() -> None:
    def replaced(m: nn.Module) -> None:
        for p in m.parameters():
            p.grad = torch.randn_like(p)

    one = built(steps.after_backward(replaced))
    with pytest.raises(MeasurementError, match=r"another gradient than the one in \.grad"):
        taped(one, descent(one))


def test_adams_clipped_gradient_stands_in_its_moments_too() -> None:
    """Once warm, its step does not know the gradient's length: clipped far below it, r is that of the same run unclipped,
    but for the direction of the gradient itself."""
    found = {}
    for clip in (1e9, 1e-3):
        torch.manual_seed(0)
        model, (x, y) = network(), steps.data()
        optimizer = optim.Adam(model.parameters(), lr=1e-3, eps=1e-30)
        tracker = SpectralTracker(optimizer, products=ALL, first=ALL)

        def step() -> None:
            F.cross_entropy(model(x), y).backward()  # noqa: B023
            nn.utils.clip_grad_norm_(model.parameters(), clip)  # noqa: B023

        one = world(model, step)
        for _ in range(30):
            run(one)
            optimizer.step()
        tape = tracker.tape(model).start()
        run(one)
        tape.stop()
        found[clip] = tracker.taped(tape).estimate().r
    assert 0.2 < found[1e-3] / found[1e9] < 5
