"""Loops as people write them, each a tiny world in float64 that can be built anew, and the Jacobian of their own step.

The oracle knows nothing of tapes: it builds the world again, moves one weight, runs the user's step with the same noise and
reads `.grad`. What stands in it is therefore what the optimizer finds: clipping, scaling and accumulation included.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

RATE = 0.1
NOISE = 11


@dataclass
class World:
    """One loop: a model, what its step does up to the optimizer's, and how it is to be watched."""

    model: nn.Module
    step: Callable[[], Any]
    parameters: list[Tensor]
    inside: bool = False


def world(model: nn.Module, step: Callable[[], Any], parameters: Sequence[Tensor] | None = None, **how: Any) -> World:
    own = list(model.parameters() if parameters is None else parameters)
    return World(model, step, [p for p in own if p.requires_grad], **how)


def run(one: World) -> None:
    """The user's step from cleared gradients, with the noise that every run of it sees."""
    for p in one.parameters:
        p.grad = None
    torch.manual_seed(NOISE)
    one.step()


def built(make: Callable[[], World], before: int = 0) -> World:
    """The world as it stands before the step in question."""
    torch.manual_seed(0)
    one = make()
    for _ in range(before):
        run(one)
    return one


def gradient_at(make: Callable[[], World], shift: Tensor, before: int = 0) -> Tensor:
    """What the optimizer finds when the weights stand somewhere else."""
    one = built(make, before)
    with torch.no_grad():
        for p, s in zip(one.parameters, shift.split([p.numel() for p in one.parameters])):
            p += s.view_as(p)
    run(one)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in one.parameters])


def dense_radius(make: Callable[[], World], before: int = 0, h: float = 1e-6) -> float:
    """r of the step of plain descent at `RATE`, by central differences of the real step, weight by weight."""
    size = sum(p.numel() for p in built(make, before).parameters)
    columns = [
        (gradient_at(make, h * e, before) - gradient_at(make, -h * e, before)) / (2 * h)
        for e in torch.eye(size, dtype=torch.float64)
    ]
    return RATE * float(torch.linalg.eigvals(torch.stack(columns, 1)).abs().max())


def krylov_radius(make: Callable[[], World], h: float = 1e-5) -> float:
    """The same by a second library's Lanczos, for networks with too many weights to go through."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = sum(p.numel() for p in built(make).parameters)

    def product(v: Any) -> Any:
        along = torch.from_numpy(v.reshape(-1).copy())
        unit = along / along.norm()
        ahead, behind = gradient_at(make, h * unit), gradient_at(make, -h * unit)
        return ((ahead - behind) / (2 * h) * along.norm()).numpy()

    start = torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    operator = LinearOperator((size, size), matvec=product, dtype="float64")
    return RATE * float(abs(eigsh(operator, k=1, which="LM", v0=start, ncv=8, tol=5e-3, return_eigenvectors=False)[0]))


def data(rows: int = 12, columns: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, columns, dtype=torch.float64), torch.arange(rows) % 3


def network(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *between, nn.Linear(5, 3)).double()


# -- the loops ---------------------------------------------------------------------------------------------------------


def plain() -> World:
    m, (x, y) = network(), data()
    return world(m, lambda: F.cross_entropy(m(x), y).backward())


def autograd_backward() -> World:
    m, (x, y) = network(), data()
    return world(m, lambda: torch.autograd.backward([F.cross_entropy(m(x), y), m(x).square().mean()]))


def given_gradient() -> World:
    m, (x, _) = network(), data()
    weight = torch.rand(12, 3, dtype=torch.float64)
    return world(m, lambda: m(x).square().backward(weight))


def dropout() -> World:
    m, (x, y) = network(nn.Dropout(0.4)), data()
    return world(m, lambda: F.cross_entropy(m(x), y).backward())


def noise_outside() -> World:
    """Dropout and label noise between the model and the loss."""
    m, (x, _) = network(), data()
    return world(m, lambda: (F.dropout(m(x), 0.3) + torch.randn(12, 3)).square().mean().backward())


def mixup() -> World:
    m, (x, y) = network(), data()

    def step() -> None:
        share, order = 0.37, torch.randperm(12)
        out = m(share * x + (1 - share) * x[order])
        (share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])).backward()

    return world(m, step)


def siamese() -> World:
    m, (x, _) = network(), data()
    return world(m, lambda: (m(x[:6]) - m(x[6:])).square().mean().backward())


def penalty() -> World:
    m, (x, y) = network(), data()
    return world(m, lambda: (F.cross_entropy(m(x), y) + 0.5 * sum(p.pow(4).sum() for p in m.parameters())).backward())


def gradient_penalty() -> World:
    """The penalty of a WGAN's critic: a derivative by the inputs inside the loss."""
    m, (x, _) = network(), data()

    def step() -> None:
        inputs = x.clone().requires_grad_()
        slope = torch.autograd.grad(m(inputs).sum(), inputs, create_graph=True)[0]
        (m(x).mean() + (slope.norm(dim=1) - 1).square().mean()).backward()

    return world(m, step)


def accumulation() -> World:
    m, (x, y) = network(), data()

    def step() -> None:
        for part, labels in zip(x.chunk(3), y.chunk(3)):
            (F.cross_entropy(m(part), labels) / 3).backward()

    return world(m, step)


class Agent(nn.Module):
    """Never called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.critic = nn.Linear(4, 1).double()
        self.temperature = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def act(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        choice = torch.distributions.Categorical(logits=self.actor(x) * self.temperature, validate_args=False)
        return choice.log_prob(y), choice.entropy(), self.critic(x)[:, 0]


def agent() -> World:
    m, (x, y) = Agent(), data()
    advantage = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def step() -> None:
        log_prob, entropy, value = m.act(x, y)
        ratio = (log_prob - log_prob.detach() + 0.05).exp()
        surrogate = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
        (surrogate - 0.01 * entropy.mean() + 0.5 * (value - 1).square().mean()).backward()

    return world(m, step, inside=True)


def generator() -> World:
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    m = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, _ = data()
    return world(m, lambda: F.softplus(-critic(m(x))).mean().backward())


def critic() -> World:
    """The other half: the generator has running statistics and gradients of its own."""
    maker = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()
    m, (x, _) = network(), data()
    z = torch.randn(12, 3, dtype=torch.float64)
    return world(m, lambda: (F.softplus(-m(x)).mean() + F.softplus(m(maker(z))).mean()).backward())


def critic_of_what_came_before() -> World:
    """The other network's part is computed before the model is called for the first time, and is not cut off."""
    maker = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()
    m, (x, _) = network(), data()
    z = torch.randn(12, 3, dtype=torch.float64)

    def step() -> None:
        made = maker(z)
        other = made.square().mean()
        (F.softplus(m(made)).mean() + F.softplus(-m(x)).mean() + other).backward()

    return world(m, step)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), reentrant

    def hidden(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.first(x)), 0.3, self.training)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.hidden, x, use_reentrant=self.reentrant)
        assert isinstance(hidden, Tensor)
        return self.last(hidden)


def checkpointed(reentrant: bool = False) -> World:
    m, (x, y) = Checkpointed(reentrant), data()
    x.requires_grad_(reentrant)
    return world(m, lambda: F.cross_entropy(m(x), y).backward())


def checkpointed_reentrant() -> World:
    return checkpointed(True)


def scaled() -> World:
    m, (x, y) = network(), data()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return world(m, lambda: scaler.scale(F.cross_entropy(m(x), y)).backward())


def unscaled() -> World:
    m, (x, y) = network(), data()

    def step() -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = optim.SGD(m.parameters(), lr=RATE)
        scaler.scale(F.cross_entropy(m(x), y)).backward()
        scaler.unscale_(optimizer)

    return world(m, step)


def convolutions() -> World:
    m = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    x, y = torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.arange(12) % 3
    return world(m, lambda: F.cross_entropy(m(x), y).backward())


def transformer_config(name: str, **sizes: Any) -> Any:
    import transformers

    common = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    return getattr(transformers, f"{name}Config")(**common, **sizes)


def gpt2() -> World:
    """With its dropout on."""
    import transformers

    config = transformer_config("GPT2", n_positions=8, n_embd=8, n_layer=1, n_head=2)
    m, ids = transformers.GPT2LMHeadModel(config).double().train(), torch.randint(0, 20, (4, 6))
    return world(m, lambda: m(input_ids=ids, labels=ids).loss.backward())


def bert() -> World:
    """The loss outside of the model, its dropout on."""
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    m = transformers.BertForSequenceClassification(
        transformer_config("Bert", max_position_embeddings=8, num_labels=3, **sizes)
    )
    m = m.double().train()
    ids, y = torch.randint(0, 20, (6, 8)), torch.arange(6) % 3
    return world(m, lambda: F.cross_entropy(m(input_ids=ids).logits, y).backward())


def adapted() -> World:
    """MAML: a step of descent inside the step."""
    m, (x, y) = network(), data()

    def step() -> None:
        weights = dict(m.named_parameters())
        inner = F.cross_entropy(functional_call(m, weights, (x[:6],)), y[:6])
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {name: w - 0.3 * g for (name, w), g in zip(weights.items(), slopes)}
        F.cross_entropy(functional_call(m, moved, (x[6:],)), y[6:]).backward()

    return world(m, step)


def adapted_inside() -> World:
    one = adapted()
    one.inside = True
    return one


class MomentumEncoder(nn.Module):
    """A second network that the forward itself moves."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 3).double()
        self.k = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.follow()
        return (self.q(x) * self.k(x)).sum(1)

    @torch.no_grad()
    def follow(self) -> None:
        for fast, slow in zip(self.q.parameters(), self.k.parameters()):
            slow.lerp_(fast + 0.1, 0.1)


class MomentumEncoderByData(MomentumEncoder):
    """Writes past autograd's eyes: no version counts it."""

    def follow(self) -> None:
        for fast, slow in zip(self.q.parameters(), self.k.parameters()):
            slow.data.mul_(0.9).add_(fast.data + 0.1, alpha=0.1)


class MomentumEncoderAnew(MomentumEncoder):
    """As MoCo's authors write it: other storage each time."""

    def follow(self) -> None:
        for fast, slow in zip(self.q.parameters(), self.k.parameters()):
            slow.data = 0.9 * slow.data + 0.1 * (fast.data + 0.1)


def momentum_encoder(kind: type[MomentumEncoder] = MomentumEncoder) -> World:
    m, (x, _) = kind(), data()
    return world(m, lambda: (m(x) - 1).square().mean().backward())


class Recurrent(nn.Module):
    """Keeps its state on itself from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(4, 3).double(), nn.Linear(3, 1).double()
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.cell(x[None], self.state)
        self.state = state.detach()
        return self.out(out)


def hidden_state() -> World:
    m, (x, _) = Recurrent(), data()
    m.state = torch.ones(1, 12, 3, dtype=torch.float64)
    return world(m, lambda: torch.stack([m(x).square().mean() for _ in range(3)]).sum().backward())


class Reassigned(nn.Module):
    """A buffer that is replaced instead of written to, and a list that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3).double()
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.scale = 0.9 * self.scale + 0.1 * hidden.detach().abs().mean(0)
        self.seen.append(float(hidden.detach().mean()))
        return hidden / self.scale * (1 + len(self.seen))


def reassigned_buffer() -> World:
    m, (x, _) = Reassigned(), data()
    return world(m, lambda: (m(x).square().mean() + m(x[:6]).square().mean()).backward())


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.div_(10))


def batch_changed_in_place() -> World:
    """A batch fresh from the loader, which the model writes to."""
    m, (x, _) = WritesToItsInput(), data()
    return world(m, lambda: m((10 * x).clone()).square().mean().backward())


# -- what stands between backward and the step -------------------------------------------------------------------------


def after_backward(change: Callable[[nn.Module], Any], size: float = 1.0) -> Callable[[], World]:
    def make() -> World:
        m, (x, y) = network(), data()

        def step() -> None:
            (size * F.cross_entropy(m(x), y)).backward()
            change(m)

        return world(m, step)

    return make


def masked(m: nn.Module) -> None:
    for p in m.parameters():
        assert p.grad is not None
        p.grad.view(-1)[::3] = 0


def centralised(m: nn.Module) -> None:
    for p in m.parameters():
        assert p.grad is not None
        if p.ndim > 1:
            p.grad -= p.grad.mean(1, keepdim=True)


def layerwise(m: nn.Module) -> None:
    for i, p in enumerate(m.parameters()):
        assert p.grad is not None
        p.grad *= 1 + i


def hooked() -> World:
    """The user's own hook changes the gradient on its way to `.grad`."""
    m, (x, y) = network(), data()
    m[0].weight.register_hook(lambda g: 0.25 * g)  # type: ignore[union-attr]
    return world(m, lambda: F.cross_entropy(m(x), y).backward())


PASSAGES: dict[str, Callable[[], World]] = {
    "clipped by the global norm": after_backward(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.05)),
    "clipped far below its length": after_backward(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1.0), 40.0),
    "norm that is not reached": after_backward(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e3)),
    "clipped by value": after_backward(lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.02)),
    "masked": after_backward(masked),
    "centralised": after_backward(centralised),
    "each tensor by itself": after_backward(layerwise),
    "unscaled by hand": after_backward(lambda m: [p.grad.div_(512) for p in m.parameters()], 512.0),
    "averaged": after_backward(lambda m: [p.grad.div_(7) for p in m.parameters()], 7.0),
}

LOOPS: dict[str, Callable[[], World]] = {
    make.__name__: make
    for make in (
        plain, autograd_backward, given_gradient, dropout, noise_outside, mixup, siamese, penalty, gradient_penalty,
        accumulation, agent, generator, critic, critic_of_what_came_before, checkpointed, checkpointed_reentrant, scaled,
        unscaled, convolutions, adapted, adapted_inside, hidden_state, reassigned_buffer, batch_changed_in_place, gpt2, bert,
    )
    if make is not autograd_backward or "handle_torch_function" in inspect.getsource(torch.autograd.backward)  # not in 2.6
}  # fmt: skip
LARGE = ("gpt2", "bert")
