"""Checkpoints compacted on disk: written whole or not at all, and read again."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from neuron_zoo_hf import GPT2, IDS
from torch import Tensor, nn

from topoopt.errors import ConfigError, FileError
from topoopt.neurons import discover
from topoopt.report.compacting import compact_checkpoint, load_compacted

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.lstm, self.head = nn.LSTM(12, 7, batch_first=True), nn.Linear(7, 2)
    def forward(self, x):
        x = self.embed(x)
        return self.head(self.lstm(self.attention(x, x, x)[0])[0][:, -1])

def make():
    torch.manual_seed(0)
    return Net()

def inputs():
    return torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's, in the working directory, which makes the model."""
    monkeypatch.setenv("TOPOOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("users_net")
    sys.modules.pop("users_net", None)


def planted(model: nn.Module, x: Tensor) -> nn.Module:
    """Equal units in every group, a head and a recurrent unit among them."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group in discover(model.eval(), x):
            for s in group.slices:
                places, tensor = s.positions(group.n), tensors[s.tensor]
                tensor.index_copy_(s.dim, places[1], tensor.index_select(s.dim, places[0]))
    return model


@pytest.mark.parametrize("name", ["small.pt", "small.safetensors"])
def test_a_state_dict_becomes_a_smaller_one(made: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("safetensors")
    x = made.inputs()
    model = planted(made.make(), x)
    torch.save(model.state_dict(), tmp_path / "large.pt")
    out = tmp_path / "new" / name
    report = compact_checkpoint(tmp_path / "large.pt", out, model="users_net:make", inputs="users_net:inputs")
    assert sum(one.merged for one in report.values()) >= 4, str(report)
    small = load_compacted(out, made.make()).eval()
    assert (small.attention.num_heads, small.lstm.hidden_size, small.embed.out_features) == (2, 6, 11)
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    assert [file.name for file in out.parent.iterdir()] == [name]
    with pytest.raises(ConfigError, match="exists already"):
        compact_checkpoint(tmp_path / "large.pt", out, model="users_net:make", inputs="users_net:inputs")
    with pytest.raises(ConfigError, match="another architecture"):
        load_compacted(out, nn.Sequential(nn.Linear(3, 3)))


def test_a_file_that_was_not_compacted_is_refused(made: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": made.make().state_dict()}, tmp_path / "large.pt")
    with pytest.raises(ConfigError, match="does not say what was cut"):
        load_compacted(tmp_path / "large.pt", made.make())
    with pytest.raises(ConfigError, match="no compacted checkpoint"):
        load_compacted(tmp_path / "nothing.pt", made.make())


def test_a_folder_becomes_one_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden units go; heads, which GPT-2's configuration has no number for, are left whole by name."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("TOPOOPT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = planted(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0)), IDS)
    model.save_pretrained(tmp_path / "large")
    (tmp_path / "large" / "tokenizer.json").write_text("{}")
    (tmp_path / "large" / "modeling_gpt2.py").write_text("raise RuntimeError('code of a stranger')")
    report = compact_checkpoint(tmp_path / "large", tmp_path / "small")
    kept = {name: one.kept for name, one in report.items()}
    assert [kept[f"transformer.h.{i}.mlp.c_fc"] for i in range(2)] == [19, 19]
    assert [kept[f"transformer.h.{i}.attn.head"] for i in range(2)] == [4, 4]
    assert "no word" in report["transformer.h.0.attn.head"].reason
    small = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small").eval()
    assert small.config.n_inner == 19
    torch.testing.assert_close(small(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "small" / "tokenizer.json").exists()
    assert not (tmp_path / "small" / "modeling_gpt2.py").exists()


def test_what_is_not_finished_leaves_nothing(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    torch.save(made.make().state_dict(), tmp_path / "large.pt")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="no space left"):
        compact_checkpoint(
            tmp_path / "large.pt", tmp_path / "new" / "small.pt", model="users_net:make", inputs="users_net:inputs"
        )
    assert list((tmp_path / "new").iterdir()) == []
