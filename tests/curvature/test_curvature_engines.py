"""Models that refuse one way of taking products: another is chosen by trying, and agrees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.checkpoint import checkpoint

from topoopt.curvature import SpectralTracker, proximity
from topoopt.curvature.engines import ENGINES
from topoopt.errors import MeasurementError

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


class Once(torch.autograd.Function):
    """Tanh with a backward that cannot be differentiated, like a fused kernel or a compiled graph."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(y := x.tanh())
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.saved_tensors[0] ** 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(engine: str) -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    exact = proximity(optimizer, lambda: model(X).square().mean(), engine="double backward", products=20)
    found = proximity(optimizer, lambda: model(X).square().mean(), engine=engine, products=20)
    assert found.r == pytest.approx(exact.r, rel=5e-3)


def test_a_kernel_without_second_derivative_goes_to_finite_differences_and_that_is_remembered() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    exact = proximity(optimizer, lambda: model(X).square().mean(), products=20)
    forwards: list[int] = []

    def loss() -> Tensor:
        forwards.append(1)
        return model[2](Once.apply(model[0](X))).square().mean()

    tracker = SpectralTracker(optimizer, products=20)
    found = tracker.estimate(loss)
    assert found.engine == "finite differences"
    assert found.r == pytest.approx(exact.r, rel=5e-3)
    forwards.clear()
    again = tracker.estimate(loss)
    assert len(forwards) == 1 + again.products  # nothing is tried a second time


def test_a_function_that_can_be_differentiated_only_once_is_refused_by_a_named_and_a_remembered_engine() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def once() -> Tensor:
        return model[2](Once.apply(model[0](X))).square().mean()

    with pytest.raises(MeasurementError, match="only once"):
        proximity(optimizer, once, engine="double backward")
    tracker = SpectralTracker(optimizer)
    assert tracker.estimate(lambda: model(X).square().mean()).engine == "double backward"
    with pytest.raises(MeasurementError, match="only once"):
        tracker.estimate(once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_give_no_finite_difference(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def once() -> Tensor:
        return model[2](Once.apply(model[0](X.to(dtype)))).float().square().mean()

    for engine in ("auto", "finite differences", "finite differences through .grad"):
        with pytest.raises(MeasurementError, match="rounding of torch"):
            proximity(optimizer, once, engine=engine)
    exact = proximity(optimizer, lambda: model(X.to(dtype)).float().square().mean(), products=20)
    assert exact.engine == "double backward"


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    exact = proximity(optimizer, lambda: model(X).square().mean(), products=20)

    def loss() -> Tensor:
        out = checkpoint(model, X.clone().requires_grad_(), use_reentrant=reentrant)
        assert isinstance(out, Tensor)
        return out.square().mean()

    found = proximity(optimizer, loss, products=20)
    assert found.r == pytest.approx(exact.r, rel=5e-3)
    assert all(p.grad is None for p in model.parameters())


def test_a_compiled_model() -> None:
    model = network()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    exact = proximity(optimizer, lambda: model(X).square().mean(), products=20)
    found = proximity(optimizer, lambda: compiled(X).square().mean(), products=20, model=compiled)
    assert found.r == pytest.approx(exact.r, rel=5e-3)


def test_a_loss_without_a_graph_says_what_to_do() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MeasurementError, match="no graph"):
        proximity(optimizer, lambda: model(X).detach().square().mean())
    with pytest.raises(MeasurementError, match="scalar"):
        proximity(optimizer, lambda: model(X))


def _before_norm(act: type[nn.Module]) -> nn.Module:
    """Convolutions whose biases have no effect, and so no gradient but rounding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), act(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), act(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [optim.Adam, optim.RMSprop, optim.Adagrad, optim.SGD])
def test_finite_differences_do_not_read_amplified_rounding(kind: type[optim.Optimizer]) -> None:
    model = _before_norm(nn.GELU)
    x, y = torch.rand(256, 1, 8, 8), torch.randint(0, 10, (256,))
    optimizer = kind(model.parameters(), lr=1e-3)  # type: ignore[call-arg]

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    for step in range(7):
        optimizer.zero_grad()
        loss().backward()
        if step in (0, 1, 6):
            options: dict[str, Any] = {"when": "upcoming", "products": 20}
            exact = proximity(optimizer, loss, engine="double backward", **options)
            found = proximity(optimizer, loss, engine="finite differences", **options)
            assert found.r == pytest.approx(exact.r, rel=0.01)
            named = [note for note in found.notes if "16 weights are left out" in note]
            assert bool(named) == (kind is not optim.SGD), found.notes  # a rate that is one for all amplifies nothing
        optimizer.step()


def test_small_gradients_that_are_true_are_kept() -> None:
    """At the first step Adam's largest rates are those of the smallest gradients, and r is theirs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, **size))
    ids = torch.randint(0, 50, (32, 16))
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    options: dict[str, Any] = {"when": "upcoming", "products": 20}

    def loss() -> Tensor:
        return model(input_ids=ids, labels=ids).loss

    exact = proximity(optimizer, loss, engine="double backward, math attention", **options)
    found = proximity(optimizer, loss, engine="finite differences", **options)
    assert found.r == pytest.approx(exact.r, rel=0.01)
    assert any("left out" in note for note in found.notes)  # biases of the keys, which softmax does not see
