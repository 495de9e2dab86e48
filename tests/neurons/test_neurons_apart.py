"""Discovery touches nothing but its own copy: no live module, no generator, no default, as any thread sees it."""

from __future__ import annotations

import copy
import functools
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topoopt.errors import DiscoveryError
from topoopt.neurons import NeuronGroup, call_parts, discover, verify
from topoopt.neurons.copying import copy_of
from topoopt.neurons.running import Numbers


class Net(nn.Module):
    """Two layers, and between them whatever `between` does."""

    def __init__(self, between: Callable[..., Tensor] = torch.tanh) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


X = torch.linspace(-1, 1, 20).reshape(4, 5)


def sizes(groups: list[NeuronGroup]) -> list[int]:
    return [group.n for group in groups]


def numpy_state() -> str:
    return str(np.random.get_state())  # noqa: NPY002


SEEN: list[list[Any]] = []


def what_threads_share() -> list[Any]:
    generators = bytes(torch.get_rng_state().numpy()), random.getstate(), numpy_state()
    return [
        torch.get_default_dtype(),
        nn.Module.__call__,
        nn.Module.__getattr__,
        torch.compiler.is_compiling(),
        *generators,
    ]


def look_from_another_thread(h: Tensor) -> Tensor:
    """In the middle of a run of the copy."""
    other = threading.Thread(target=lambda: SEEN.append(what_threads_share()))
    other.start()
    other.join()
    return torch.tanh(h) + torch.rand(1) + torch.zeros(8)


def test_no_other_thread_sees_a_default_or_a_generator_move() -> None:
    model = Net(look_from_another_thread)
    SEEN.clear()
    before = what_threads_share()
    assert sizes(discover(model, X)) == [8]
    assert len(SEEN) >= 2
    assert all(one == before for one in [*SEEN, what_threads_share()])


class Caching(nn.Module):
    """What LeViT does: results kept in plain containers, outside of buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(8))
        self.cache: dict[str, Tensor] = {}
        self.log: list[Tensor] = []
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        shift = self.cache.setdefault("cpu", self.shift * 1)
        h = torch.relu(self.a(x) + shift)
        self.log.append(h.mean().detach())
        return self.b(h)


def test_containers_that_a_forward_fills_stay_empty_and_hide_nothing() -> None:
    model = Caching().eval()
    assert sizes(discover(model, X)) == [8]
    assert (model.cache, model.log, model.seen) == ({}, [], 0)
    assert type(model(X)) is Tensor


@pytest.mark.parametrize("kind", ["closure", "global", "partial", "bound", "nested"])
def test_a_forward_put_in_place_is_the_copys_own(kind: str) -> None:
    """Statistics of the live model stay where they are, and the groups are found."""
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    old, calls = model.forward, []

    def patched(self: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return nn.Sequential.forward(self, x) * 1.0

    names = {"old": old}
    model.forward = {
        "closure": lambda x: old(x) * 1.0,
        "global": types.FunctionType((lambda x: old_(x) * 1.0).__code__.replace(co_names=("old",)), names),  # noqa: F821
        "partial": functools.partial(patched, model),
        "bound": types.MethodType(patched, model),
        "nested": functools.wraps(old)(lambda x: (lambda y: old(y))(x)),
    }[kind]
    before = model[1].running_mean.clone()
    assert sizes(discover(model, X)) == [8]
    assert torch.equal(model[1].running_mean, before)
    assert int(model[1].num_batches_tracked) == 0
    assert not calls


OUTSIDE = nn.BatchNorm1d(8)
"""A live module that a forward reaches by a global name."""


def test_a_live_module_outside_the_model_is_not_run() -> None:
    before = OUTSIDE.running_mean.clone()  # type: ignore[union-attr]
    groups = discover(Net(lambda h: OUTSIDE(h)), X)
    assert not groups
    assert "BatchNorm1d that is no part of it" in groups.notes[0]
    assert list(groups.unverified) == ["a"]
    assert torch.equal(OUTSIDE.running_mean, before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.random(),
        lambda: random.randint(0, 3),
        lambda: float(np.random.rand()),  # noqa: NPY002
        lambda: float(np.random.normal()),  # noqa: NPY002
    ],
)
def test_draws_that_all_threads_share_are_named_and_do_not_happen(draw: Callable[[], float]) -> None:
    def between(h: Tensor) -> Tensor:
        return torch.tanh(h) * (1 + draw())

    before = random.getstate(), numpy_state()
    groups = discover(Net(between), X)
    assert before == (random.getstate(), numpy_state())
    assert not groups
    assert "that all threads share" in groups.unverified["a"]


def test_seeding_in_a_forward_does_not_happen() -> None:
    def seeded(h: Tensor) -> Tensor:
        torch.manual_seed(0)
        return h + torch.rand(1)

    model = Net(seeded)
    state = torch.get_rng_state()
    groups = discover(model, X)
    assert torch.equal(state, torch.get_rng_state())
    assert "all threads share" in groups.notes[0]


class Owner(Net):
    """Generators of its own are a module's to draw from, and each run draws the same."""

    def __init__(self) -> None:
        super().__init__()
        self.python, self.numpy = random.Random(1), np.random.default_rng(1)
        self.torch = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        noise = self.python.random() + self.numpy.normal() + torch.rand(1, generator=self.torch)
        return self.b(self.a(x).tanh() * noise)


def test_generators_of_its_own_are_copied() -> None:
    model = Owner()
    before = model.python.getstate(), str(model.numpy.bit_generator.state), model.torch.get_state()
    assert sizes(discover(model, X)) == [8]
    assert before[:2] == (model.python.getstate(), str(model.numpy.bit_generator.state))
    assert torch.equal(before[2], model.torch.get_state())


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda h: h + torch.rand(1),
    "randn_like": lambda h: h + torch.randn_like(h.sum(-1, keepdim=True)),
    "randint": lambda h: h + torch.randint(3, (1,)) + torch.randint_like(h.sum(-1, keepdim=True), 2, 5),
    "randperm": lambda h: h[torch.randperm(4)],
    "dropout": lambda h: nn.functional.dropout(h, 0.5, training=True),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full((4, 1), 0.5)),
    "uniform_": lambda h: h + torch.empty(1).uniform_() + torch.empty(1).exponential_(),
    "multinomial": lambda h: h[torch.multinomial(torch.ones(4), 2)],
    "gumbel": lambda h: h * nn.functional.gumbel_softmax(h.sum(-1)).unsqueeze(-1),
    "normal": lambda h: h + torch.normal(0.0, 1.0, (1,)) + torch.normal(torch.zeros(4, 1), 1.0),
    "distribution": lambda h: h + torch.distributions.Normal(0.0, 1.0).rsample((1,)),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_comes_from_a_generator_of_the_runs_own(name: str) -> None:
    """The same in two runs, and the global generator does not move."""
    model = Net(NOISE[name])
    state, runs = torch.get_rng_state(), []
    for _ in range(2):
        with Numbers(torch.float64):
            runs.append(NOISE[name](torch.ones(4, 8, dtype=torch.float64)))
    assert torch.equal(*runs)
    assert runs[0].dtype is torch.float64
    assert torch.equal(state, torch.get_rng_state())
    expected = [] if name == "dropout" else [8]  # a mask for each unit tells units apart
    assert sizes(discover(model, X)) == expected
    assert torch.equal(state, torch.get_rng_state())


def test_numbers_are_wide_however_a_model_makes_or_casts_them() -> None:
    with Numbers(torch.float64):
        made = [
            torch.zeros(2),
            torch.tensor(0.1),
            torch.linspace(0, 1, 3),
            torch.arange(0.5, 2),
            torch.eye(2),
            torch.full((1,), 0.5),
        ]
        cast = [
            X.double().float(),
            X.double().half(),
            X.double().to(torch.bfloat16),
            torch.ones(2, dtype=torch.bool).float(),
        ]
    assert {one.dtype for one in made + cast} == {torch.float64}
    assert torch.zeros(2).dtype is torch.float32


class Looking(TorchFunctionMode):
    """A user's mode, which has nothing to see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += getattr(func, "__name__", "") in ("linear", "tanh")
        return func(*args, **(kwargs or {}))


@contextmanager
def hooked_everywhere(calls: list[str]) -> Iterator[None]:
    """Hooks that are registered for all modules of the process."""
    handles = [
        nn.modules.module.register_module_forward_hook(lambda m, *_: calls.append(type(m).__name__)),
        nn.modules.module.register_module_forward_pre_hook(lambda m, *_: calls.append(type(m).__name__)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_and_modes_of_the_users_do_not_see_the_copy() -> None:
    model, calls = Net(), list[str]()
    model.a.register_forward_hook(lambda *_: calls.append("a"))
    model.register_state_dict_post_hook(lambda *_: calls.append("state"))
    with hooked_everywhere(calls), Looking() as mode:
        assert sizes(discover(model, X)) == [8]
    assert (calls, mode.seen) == ([], 0)
    assert len(model.a._forward_hooks) == 1


def test_a_compiled_part_runs_as_it_was_written_and_stays_compiled() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    class Part(Net):
        @torch.compile(backend=backend)
        def middle(self, h: Tensor) -> Tensor:
            return torch.tanh(h)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.middle(self.a(x)))

    model = Part()
    model.between = torch.compile(torch.sin, backend=backend)
    assert sizes(discover(model, X)) == [8]
    assert not compiled
    model(X)
    assert compiled


class Agent(nn.Module):
    """Used through a method; `forward` does not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))

    def act(self, x: Tensor, scale: float = 1.0) -> Any:
        policy = torch.distributions.Categorical(logits=self.actor(x) * scale)
        return policy.sample(), policy, self.critic(x)


def test_models_are_run_as_they_are_used() -> None:
    model = Agent()
    state = torch.get_rng_state()
    by_name = discover(model, X, call="act", scale=2.0)
    by_function = discover(model, X, call=lambda module, x: (module.actor(x), module.critic(x)))
    calls = [("actor", "__call__", (X,), {}), ("critic", "forward", (X,), {})]
    in_parts = discover(model, calls, call=call_parts)
    assert sizes(by_name) == sizes(by_function) == sizes(in_parts) == [8, 7]
    assert torch.equal(state, torch.get_rng_state())
    assert verify(model, by_name[0], X, call="act") < 1e-12
    with pytest.raises(DiscoveryError, match="cannot be run"):
        discover(model, X)


def test_a_call_that_reaches_for_the_live_model_is_refused() -> None:
    model = Agent()
    groups = discover(model, X, call=lambda module, x: model.actor(x))
    assert not groups
    assert "no part of it" in groups.notes[0]


def test_a_model_is_read_only_where_it_lies() -> None:
    """Nothing of the live model is written, not even what is put back later: every write to it would raise."""

    class Sealed(Net):
        def __setattr__(self, name: str, value: Any) -> None:
            if vars(self).get("sealed"):
                raise AssertionError(f"{name} was set")
            super().__setattr__(name, value)

    model = Sealed()
    before = {name: copy.copy(vars(module)) for name, module in model.named_modules()}
    model.sealed = True
    group_sizes: list[int] = []
    reader = threading.Thread(target=lambda: group_sizes.extend(sizes(discover(model, X))))
    reader.start()
    while reader.is_alive():
        for name, module in model.named_modules():
            now = {key: value for key, value in vars(module).items() if key != "sealed"}
            assert now == before[name]
    reader.join()
    assert group_sizes == [8]


def test_a_copy_shares_nothing_that_can_be_written() -> None:
    model = Caching()
    model.log.append(torch.ones(1))
    copied: Any = copy_of(model)
    copied.log.append(1)
    copied.cache["x"] = 1
    assert (len(model.log), model.cache) == (1, {})
    assert copied.a.weight.data_ptr() != model.a.weight.data_ptr()


class InHalves(Net):
    """Autocast inside, as accelerate puts it around a forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class WithoutGradients(Net):
    """A method for acting, not for training."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class ThroughNumpy(Net):
    """Leaves torch on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.from_numpy(self.a(x).detach().numpy()).tanh())


class Unpicklable:
    """What accelerate wraps a forward in: it is called, and refuses to be pickled."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def __getstate__(self) -> Any:
        raise RuntimeError("unwrap the model first")


def wrapped() -> nn.Module:
    model: Any = Net()
    wrapper = Unpicklable(model.forward)
    model.forward = lambda x: wrapper(x).float()
    return model


WAYS: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))),
    "scripted inside": lambda: Net(torch.jit.script(nn.Tanh())),
    "autocast": InHalves,
    "no gradients": WithoutGradients,
    "numpy": ThroughNumpy,
    "a wrapper that refuses": wrapped,
    "checkpoint": lambda: Net(lambda h: torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=False)),
    "vmap": lambda: Net(torch.vmap(torch.tanh)),
    "half precision": lambda: Net().to(torch.bfloat16),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_in_which_models_run(name: str) -> None:
    model = WAYS[name]()
    x = X.to(next(model.parameters()).dtype)
    state = torch.get_rng_state()
    assert sizes(discover(model, x)) == [8]
    assert torch.equal(state, torch.get_rng_state())


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_change_nothing(name: str) -> None:
    model = Net()
    with SURROUNDINGS[name]():
        groups = discover(model, X)
    assert list(groups) == list(discover(model, X))
    assert sizes(groups) == [8]


def test_what_a_profiler_hides_is_said() -> None:
    sys.setprofile(lambda *_: None)
    try:
        groups = discover(Net(), X)
        kept = sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert kept
    assert sizes(groups) == [8]
    assert "being profiled" in groups.notes[0]
