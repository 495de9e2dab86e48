"""Small random models of many architectures, hand-written ones here and Hugging Face's in `neuron_zoo_hf`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Groups = dict[str, list[int]]
"""kind -> sorted sizes of all groups of that kind."""


@dataclass(frozen=True)
class Example:
    """A model and the inputs of one forward."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """How to build a model, and the groups that it has."""

    build: Callable[[], Example]
    expected: Groups


ZOO: dict[str, Architecture] = {}


def architecture(**expected: list[int]) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Register a builder with the groups its model has."""

    def register(build: Callable[[], Example]) -> Callable[[], Example]:
        ZOO[build.__name__] = Architecture(build, {kind: sorted(sizes) for kind, sizes in expected.items()})
        return build

    return register


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@architecture(hidden=[8, 12])
def mlp() -> Example:
    return Example(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)), (rand(4, 5),)
    )


@architecture(hidden=[8, 12])
def mlp_layer_norm() -> Example:
    layers = [nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 12), nn.PReLU(12), nn.Linear(12, 3)]
    return Example(nn.Sequential(*layers), (rand(4, 5),))


@architecture(channel=[6, 10])
def cnn_batch_norm() -> Example:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 3), nn.BatchNorm2d(10),
              nn.ReLU(), nn.Flatten(), nn.Linear(40, 4)]  # fmt: skip
    return Example(nn.Sequential(*layers), (rand(2, 3, 10, 10),))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(channels, channels + 2, 3, padding=1),
            nn.Conv2d(channels + 2, channels, 3, padding=1),
        )
        self.norm_a, self.norm_b = nn.BatchNorm2d(channels + 2), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


@architecture(channel=[8, 8], residual=[6])
def resnet() -> Example:
    layers = [
        nn.Conv2d(3, 6, 3),
        _ResidualBlock(6),
        _ResidualBlock(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ]
    return Example(nn.Sequential(*layers), (rand(2, 3, 8, 8),))


class _GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.Conv2d(12, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x)))).mean((2, 3))


@architecture(channel=[3, 4])
def group_norm() -> Example:
    return Example(_GroupNormNet(), (rand(2, 3, 7, 7),))


@architecture(channel=[2, 3, 4, 10])
def grouped_convolution() -> Example:
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 10, 1), nn.ReLU(),
              nn.Flatten(), nn.Linear(90, 4)]  # fmt: skip
    return Example(nn.Sequential(*layers), (rand(2, 3, 5, 5),))


@architecture(channel=[6, 9])
def depthwise_separable() -> Example:
    layers = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6(),
              nn.Conv2d(6, 9, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)]  # fmt: skip
    return Example(nn.Sequential(*layers), (rand(2, 3, 6, 6),))


@architecture(channel=[6, 8])
def autoencoder() -> Example:
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 5)]
    return Example(nn.Sequential(*layers), (rand(2, 3, 11, 11),))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.Conv2d(11, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(shallow, 2)))
        return self.last(torch.cat([shallow, F.relu(self.up(deep))], 1))


@architecture(channel=[5, 6, 8])
def unet() -> Example:
    return Example(_UNet(), (rand(2, 3, 8, 8),))


class _DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3)])
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.head(x.mean((2, 3)))


@architecture(channel=[3, 3, 3, 4])
def densenet() -> Example:
    return Example(_DenseNet(), (rand(2, 3, 6, 6),))


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.b((x * gate[:, :, None, None]).amax((2, 3)))


@architecture(channel=[8], hidden=[5])
def squeeze_excite() -> Example:
    return Example(_SqueezeExcite(), (rand(2, 3, 6, 6),))


class _Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@architecture(recurrent=[7])
def lstm() -> Example:
    return Example(_Recurrent(nn.LSTM(4, 7, batch_first=True), 7), (rand(2, 5, 4),))


@architecture(recurrent=[7, 7])
def lstm_two_layers() -> Example:
    return Example(_Recurrent(nn.LSTM(4, 7, num_layers=2, batch_first=True), 7), (rand(2, 5, 4),))


@architecture(recurrent=[6, 6])
def lstm_both_ways() -> Example:
    return Example(_Recurrent(nn.LSTM(4, 6, bidirectional=True, batch_first=True), 12), (rand(2, 5, 4),))


@architecture(recurrent=[5, 9])
def lstm_projected() -> Example:
    return Example(_Recurrent(nn.LSTM(4, 9, proj_size=5, batch_first=True), 5), (rand(2, 5, 4),))


@architecture(recurrent=[7])
def gru() -> Example:
    return Example(_Recurrent(nn.GRU(4, 7, batch_first=True), 7), (rand(2, 5, 4),))


@architecture(recurrent=[7])
def rnn_tanh() -> Example:
    return Example(_Recurrent(nn.RNN(4, 7, batch_first=True), 7), (rand(2, 5, 4),))


class _LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(ids))
        return self.head(hidden[-1])


@architecture(recurrent=[8], hidden=[6])
def lstm_text_classifier() -> Example:
    return Example(_LastState(), (torch.arange(10).reshape(2, 5),))


class _Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(4, 6), nn.GRUCell(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, c, g = x.new_zeros(2, 6), x.new_zeros(2, 6), x.new_zeros(2, 5)
        for t in range(3):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        return self.head(g)


@architecture(recurrent=[5, 6])
def recurrent_cells() -> Example:
    return Example(_Cells(), (rand(2, 3, 4),))


class _Transformer(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.embed, self.encoder, self.head = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


@architecture(hidden=[12, 12], head=[2, 2], head_dim=[4, 4], residual=[8])
def torch_transformer_encoder() -> Example:
    return Example(_Transformer(), (rand(2, 5, 3),))


@architecture(hidden=[12, 12], head=[2, 2], head_dim=[4, 4], residual=[8])
def torch_transformer_pre_norm() -> Example:
    return Example(_Transformer(norm_first=True), (rand(2, 5, 3),))


class _MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(3, 12), nn.MultiheadAttention(12, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x)[0])


@architecture(hidden=[12, 12], head=[3], head_dim=[4])
def multihead_attention() -> Example:
    return Example(_MultiHead(), (rand(5, 2, 3),))


class _Attention(nn.Module):
    """Attention written by hand in one of the three fused layouts."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.embed, self.qkv, self.out = nn.Linear(3, 10), nn.Linear(10, 36), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.embed(x))
        batch, length = x.shape[:2]
        if self.layout == "q|k|v":
            q, k, v = (part.view(batch, length, 3, 4).transpose(1, 2) for part in qkv.split(12, -1))
        elif self.layout == "(3,H,hd)":
            q, k, v = qkv.view(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = qkv.view(batch, length, 3, 3, 4).permute(3, 0, 2, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, 12))


@architecture(hidden=[10], head=[3], head_dim=[4, 4])
def attention_fused_thirds() -> Example:
    return Example(_Attention("q|k|v"), (rand(2, 5, 3),))


@architecture(hidden=[10], head=[3], head_dim=[4])
def attention_fused_view() -> Example:
    return Example(_Attention("(3,H,hd)"), (rand(2, 5, 3),))


@architecture(hidden=[10], head=[3], head_dim=[4])
def attention_fused_by_head() -> Example:
    return Example(_Attention("(H,3,hd)"), (rand(2, 5, 3),))


class _GroupedQuery(nn.Module):
    def __init__(self, repeat: bool) -> None:
        super().__init__()
        self.repeat = repeat
        self.embed, self.q, self.k, self.v = nn.Linear(3, 10), nn.Linear(10, 24), nn.Linear(10, 8), nn.Linear(10, 8)
        self.out = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.repeat:
            k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.repeat)
        return self.out(y.transpose(1, 2).flatten(2))


@architecture(hidden=[10], head=[2, 3], head_dim=[4, 4])
def grouped_query_attention() -> Example:
    return Example(_GroupedQuery(repeat=False), (rand(2, 5, 3),))


@architecture(hidden=[10], head=[2, 3], head_dim=[4, 4])
def grouped_query_repeated() -> Example:
    return Example(_GroupedQuery(repeat=True), (rand(2, 5, 3),))


class _Gated(nn.Module):
    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.gate_up, self.down = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)
        gate, up = (both[..., ::2], both[..., 1::2]) if self.interleaved else both.chunk(2, -1)
        return self.down(F.silu(gate) * up)


@architecture(hidden=[8])
def gated_halves() -> Example:
    return Example(_Gated(interleaved=False), (rand(4, 5),))


@architecture(hidden=[8])
def gated_interleaved() -> Example:
    return Example(_Gated(interleaved=True), (rand(4, 5),))


class _WeightNormed(nn.Module):
    def __init__(self, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c = how(nn.Linear(4, 7)), how(nn.Linear(7, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@architecture(hidden=[6, 7])
def weight_norm() -> Example:
    return Example(_WeightNormed(nn.utils.parametrizations.weight_norm), (rand(3, 4),))


@architecture(hidden=[6, 7])
def weight_norm_old() -> Example:
    return Example(_WeightNormed(nn.utils.weight_norm), (rand(3, 4),))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(5, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t())


@architecture(hidden=[9, 12])
def siamese() -> Example:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 12))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return F.cosine_similarity(self.tower(a), self.tower(b), dim=-1)

    return Example(Siamese(), (rand(4, 5), rand(4, 5) + 1))


class _TiedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(5, 8), nn.Linear(8, 5)
        self.embed, self.mix, self.score = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 5, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        logits = self.score(torch.tanh(self.mix(x)) + x)
        return self.decode(torch.tanh(self.encode(logits)))


@architecture(hidden=[8], residual=[6])
def tied_embeddings() -> Example:
    return Example(_TiedTwice(), (torch.arange(5),))


class _Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x)
        return self.head(x.mean(1))


@architecture(hidden=[7, 12], residual=[8])
def mlp_mixer() -> Example:
    return Example(_Mixer(), (rand(2, 5, 3),))


class _SoftExperts(nn.Module):
    """A dense mixture whose experts lie in one tensor each."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(5, 4)
        self.up, self.down = nn.Parameter(rand(4, 5, 6)), nn.Parameter(rand(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        hidden = F.relu(torch.einsum("bi,eih->ebh", x, self.up))
        return torch.einsum("ebo,be->bo", torch.bmm(hidden, self.down), gates)


@architecture(expert=[4], hidden=[6])
def soft_experts() -> Example:
    return Example(_SoftExperts(), (rand(7, 5),))


class _LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = nn.Linear(5, 8), nn.Linear(5, 3, bias=False), nn.Linear(3, 8, bias=False)
        self.head = nn.Linear(8, 2)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + 2.0 * self.lora_B(self.lora_A(x))))


@architecture(rank=[3], hidden=[8])
def low_rank_adapter() -> Example:
    return Example(_LowRank(), (rand(4, 5),))


class _Positions(nn.Module):
    """Units that a fixed table tells apart, and units that a learned one does not."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        table = torch.sin(torch.arange(40.0)).reshape(5, 8)
        self.table = nn.Parameter(table) if learned else nn.Buffer(table)
        self.embed, self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.embed(x) + self.table)))


@architecture(hidden=[12])
def fixed_positions() -> Example:
    return Example(_Positions(learned=False), (rand(2, 5, 3),))


@architecture(hidden=[8, 12])
def learned_positions() -> Example:
    return Example(_Positions(learned=True), (rand(2, 5, 3),))


class _Branching(nn.Module):
    """Control flow that depends on data: no export."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 9), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if x.sum() > 1e30:
            x = x * 0.5
        return self.c(F.relu(self.b(x)))


@architecture(hidden=[6, 9])
def data_dependent_branch() -> Example:
    return Example(_Branching(), (rand(3, 4),))


@architecture(hidden=[8])
def tied_autoencoder_without_bias() -> Example:
    return Example(_Tied(), (rand(4, 5),))


@architecture()
def sorted_units() -> Example:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).cumsum(-1))

    return Example(Sorted(), (rand(4, 5),))


@architecture(hidden=[7, 8])
def spectral_norm() -> Example:
    return Example(_SpectralNormed(), (rand(4, 5),))


class _SpectralNormed(nn.Sequential):
    def __init__(self) -> None:
        norm = nn.utils.parametrizations.spectral_norm
        super().__init__(norm(nn.Linear(5, 8)), nn.ReLU(), norm(nn.Linear(8, 7)), nn.ReLU(), nn.Linear(7, 2))


@architecture(channel=[4, 6])
def gated_convolution_instance_norm() -> Example:
    layers = [nn.Conv1d(3, 8, 3), nn.GLU(1), nn.Conv1d(4, 6, 3), nn.InstanceNorm1d(6, affine=True, track_running_stats=True),
              nn.ReLU(), nn.Conv1d(6, 2, 1)]  # fmt: skip
    return Example(nn.Sequential(*layers), (rand(2, 3, 12),))


@architecture(channel=[3, 6])
def pixel_shuffle() -> Example:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)]
    return Example(nn.Sequential(*layers), (rand(2, 3, 8, 8),))


@architecture(channel=[2, 2, 2, 4])
def channel_shuffle() -> Example:
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
              nn.Conv2d(8, 3, 1)]  # fmt: skip
    return Example(nn.Sequential(*layers), (rand(2, 3, 6, 6),))


@architecture(hidden=[5, 6])
def bag_of_words() -> Example:
    layers = [nn.EmbeddingBag(10, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    return Example(nn.Sequential(*layers), (torch.tensor([[1, 2, 3], [4, 5, 6]]),))


class _FourierLayer(nn.Module):
    """Complex weights on the lowest frequencies beside a pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project, self.local = nn.Linear(1, 6), nn.Linear(6, 1), nn.Conv1d(6, 6, 1)
        self.weight = nn.Parameter(torch.randn(6, 6, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).transpose(1, 2)
        spectrum = torch.fft.rfft(x)
        kept = torch.zeros_like(spectrum)
        kept[:, :, :4] = torch.einsum("bix,iox->box", spectrum[:, :, :4], self.weight)
        x = F.gelu(torch.fft.irfft(kept, n=x.shape[-1]) + self.local(x))
        return self.project(x.transpose(1, 2))


@architecture(channel=[6], hidden=[6])
def fourier_neural_operator() -> Example:
    return Example(_FourierLayer(), (rand(2, 16, 1),))


class _Messages(nn.Module):
    """Messages along edges, summed where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(6, 7), nn.Linear(10, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sent = F.relu(self.message(torch.cat([x[edges[0]], x[edges[1]]], -1)))
        return self.update(torch.cat([x, torch.zeros(len(x), 7).index_add(0, edges[1], sent)], -1))


@architecture(hidden=[7])
def graph_network() -> Example:
    return Example(_Messages(), (rand(5, 3), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])))


class _Centers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centers, self.width, self.out = nn.Parameter(rand(7, 3)), nn.Parameter(torch.ones(7)), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.exp(-self.width * torch.cdist(x, self.centers)))


@architecture(hidden=[7])
def radial_basis() -> Example:
    return Example(_Centers(), (rand(5, 3),))
