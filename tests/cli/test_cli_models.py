"""Commands on models: inspect and compact on checkpoints, some of them hostile; doctor."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import topoopt
from topoopt.cli import main
from topoopt.report import compacting, loading
from topoopt.report.compacting import load_compacted

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2))

def relu():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 2))

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 5, generator=generator) for _ in range(2)]

def training():
    model = make()
    x = torch.randn(16, 5)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), [x], lambda model, batch: model(batch).square().mean()

def searched():
    model, optimizer, batches, loss = training()
    return {"model": model, "optimizer": optimizer, "batches": batches, "loss_fn": loss, "steps": 60}

def broken():
    raise KeyError("mine")

def number():
    return 3

three = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "made_here.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "made_here", raising=False)
    return tmp_path


@pytest.fixture
def foreign(here: Path) -> Path:
    (here / "text.pt").write_text("hello")
    (here / "empty.pt").write_bytes(b"")
    (here / "bad.safetensors").write_bytes(b"\xff" * 99)
    (here / "long.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    torch.save([1, 2], here / "list.pt")
    torch.save({1: torch.zeros(1)}, here / "numbers.pt")
    torch.save({"0.weight": torch.zeros(3)}, here / "other.pt")
    torch.save({"0.weight": "x"}, here / "words.pt")
    torch.save(nn.Linear(2, 2), here / "module.pt")
    return here


FOREIGN = ["text.pt", "empty.pt", "bad.safetensors", "long.safetensors", "list.pt", "numbers.pt", "other.pt"]


@pytest.mark.parametrize("name", [*FOREIGN, "words.pt", "module.pt"])
def test_what_holds_no_weights_of_the_model_is_one_line(name: str, foreign: Path, capsys) -> None:
    assert main(["inspect", name, "--model", "made_here:make", "-q"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("topoopt: ")
    assert error.count("\n") == 1
    assert name in error


def test_a_pickle_runs_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {here / 'EXECUTED'}",)

    torch.save({"0.weight": Evil()}, here / "evil.pt")
    assert main(["inspect", "evil.pt", "--model", "made_here:make", "-q"]) == 1
    assert not (here / "EXECUTED").exists()
    assert "no checkpoint of weights" in capsys.readouterr().err


def test_a_file_far_larger_than_its_model_is_not_read(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(loading, "SLACK", 1000)
    torch.save({"0.weight": torch.zeros(10_000)}, here / "large.pt")
    assert main(["inspect", "large.pt", "--model", "made_here:make", "-q"]) == 1
    assert "it is not this model's checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("made_here:broken", "raised KeyError: 'mine'"),
        ("made_here:number", "made a int, not a torch.nn.Module"),
        ("made_here:three", "cannot be called"),
        ("made_here:nothing", "cannot be imported"),
        (":make", "is no module:callable"),
        ("..:make", "cannot be imported"),
    ],
)
def test_a_callable_that_does_not_work_is_named(model: str, says: str, foreign: Path, capsys) -> None:
    assert main(["inspect", "list.pt", "--model", model, "-q"]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def rewrite(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_the_code_of_a_folder_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    flag = folder / "EXECUTED"
    rewrite(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}, architectures=["M"])
    (folder / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(flag)!r}).touch()\n"
        "from transformers import BertConfig\nclass C(BertConfig): model_type = 'evil'\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["inspect", "-q", str(folder)]) == 1
    assert not flag.exists()
    assert capsys.readouterr().err.splitlines()[-1].startswith("topoopt: ")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_hidden_layers": 10**9}, "more than 10000 are not loaded"),
        ({"vocab_size": 10**9}, "it is not whole"),
        ({"hidden_size": "x"}, "cannot be loaded"),
        ({"model_type": ["bert"]}, "cannot be loaded"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused(values: dict[str, object], says: str, folder: Path, capsys) -> None:
    rewrite(folder, **values)
    assert main(["inspect", "-q", "--groups", str(folder)]) == 1
    assert says in capsys.readouterr().err


def test_a_name_that_is_no_model_is_not_called(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(folder, architectures=["pipeline", 3, "BertConfig"])
    assert main(["inspect", "-q", "--groups", str(folder)]) == 0
    assert "intermediate.dense" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\x00"])
def test_a_config_that_is_none_is_one_line(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(text)
    assert main(["inspect", "-q", str(folder)]) == 1
    assert "is no JSON" in capsys.readouterr().err


@pytest.fixture
def whole(here: Path) -> Path:
    """Nine hidden units: four that nobody reads, one that is dead on inputs of ordinary size, two that are nearly equal."""
    model = loading.call("made_here:relu")
    with torch.no_grad():
        model[2].weight[:, :4] = 0
        model[0].bias[4] = -8.0
        model[0].weight[6], model[0].bias[6] = 1.01 * model[0].weight[5], 1.01 * model[0].bias[5]
    torch.save(model.state_dict(), here / "whole.pt")
    return here / "whole.pt"


COMPACT = ["compact", "whole.pt", "--model", "made_here:relu", "-o"]


def test_compact_writes_smaller_weights_that_load_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPACT, "small.pt"]) == 0
    assert "42 parameters of 74; the output changed by" in capsys.readouterr().out
    model, small = (loading.call("made_here:relu") for _ in range(2))
    model.load_state_dict(torch.load(whole, weights_only=True))
    load_compacted("small.pt", small)
    x = torch.randn(16, 5)
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    assert small[0].weight.shape == (5, 5)


def test_compact_allows_what_it_is_told_to(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*COMPACT, "small.safetensors", "--json", "--tolerance", "0.01", "--change", "0.1"]
    assert main(asked) == 0
    near = json.loads(capsys.readouterr().out)
    assert (near["groups"][0]["merged"], near["groups"][0]["removed"]) == (1, 4)
    assert 1e-5 < near["change"] < 0.1
    silent = [*COMPACT, "silent.pt", "--json", "--silent"]
    assert main([*silent, "--inputs", "made_here:batches"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["groups"][0]["removed"], data["parameters"]) == (5, [74, 34])
    assert main([*silent[:-2], "-q", "--csv"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*COMPACT, "other.pt", "--silent"]) == 1
    assert "give inputs that are the data's" in capsys.readouterr().err


def test_compact_writes_whole_and_right_or_nothing(whole: Path, monkeypatch, capsys) -> None:
    assert main([*COMPACT, "/proc/small.pt"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    resize = compacting.resize

    def spoilt(*args: object) -> nn.Module:
        model = resize(*args)  # type: ignore[arg-type]
        with torch.no_grad():
            model[2].bias += 1  # type: ignore[index]
        return model

    monkeypatch.setattr(compacting, "resize", spoilt)
    before = sorted(whole.parent.iterdir())
    assert main([*COMPACT, "small.pt"]) == 1
    assert "gives other outputs" in capsys.readouterr().err
    assert sorted(whole.parent.iterdir()) == before


def test_compact_writes_a_folder_that_can_be_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = folder.parent / "small"
    model = loading.load(str(folder))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[:, :3] = 0  # type: ignore[union-attr]
    model.save_pretrained(folder)  # type: ignore[operator]
    assert main(["compact", "-q", str(folder), "-o", str(small)]) == 0
    assert loading.load(str(small)).config.intermediate_size == 5  # type: ignore[union-attr]
    assert main(["compact", "-q", str(folder), "-o", str(small)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["compact", "-q", str(folder), "-o", f"{small}.safetensors"]) == 0
    again = load_compacted(f"{small}.safetensors", loading.load(str(folder)))
    assert again.encoder.layer[0].intermediate.dense.out_features == 5  # type: ignore[union-attr]


def test_a_folder_is_for_models_that_have_one(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPACT, "small"]) == 1
    assert "is no Hugging Face model: give a file, such as small.pt" in capsys.readouterr().err


REQUIRES = ["torch>=2.6", "msgspec>=0.20", "nowhere.at-all>=1; extra == 'odd'", 'topoopt[odd]; extra == "all"']


def test_doctor_says_what_is_here(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in (torch.__version__, metadata.version("msgspec"), "device", "homology"):
        assert word in text
    assert "nowhere.at-all  -        pip install 'topoopt[odd]'" in text
    assert "topoopt[all]" not in text


def test_doctor_says_what_a_reading_costs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "made_here:training", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["torch"] == torch.__version__
    assert data["reading"]["rule"] == "sgd"
    assert data["reading"]["edge"] == 2
    assert data["reading"]["reading, seconds"] > 0
    assert main(["doctor", "made_here:number"]) == 1
    assert "return (model, optimizer, batches)" in capsys.readouterr().err


def test_inspect_as_json_and_csv(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = loading.call("made_here:make")
    torch.save(model.state_dict(), here / "a.pt")
    torch.save({name: 2 * tensor for name, tensor in model.state_dict().items()}, here / "b.pt")
    arguments = ["inspect", "a.pt", "b.pt", "--model", "made_here:make"]
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["neurons"] for row in data["groups"]] == [9]
    assert [row["checkpoint"] for row in data["neurons"]] == ["a.pt", "b.pt"]
    assert data["distortion"][0]["lower"] == pytest.approx(2, rel=1e-5)
    assert data["neurons"][1]["merge margin"] == pytest.approx(2 * data["neurons"][0]["merge margin"], rel=1e-5)
    assert main([*arguments, "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_suggest_hands_over_what_the_callable_returns(here: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Suggested:
        lr: tuple[float, ...]
        bracket: tuple[float, float]

    def suggest(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list, loss_fn) -> Suggested:
        assert loss_fn(model, batches[0]).ndim == 0
        return Suggested((2 * optimizer.param_groups[0]["lr"],), (0.1, float("inf")))

    monkeypatch.setattr(topoopt, "suggest", suggest, raising=False)
    assert main(["suggest", "made_here:training", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lr": [0.2], "bracket": [0.1, None]}
    assert main(["suggest", "made_here:training"]) == 0
    assert "0.2" in capsys.readouterr().out
    assert main(["suggest", "made_here:number"]) == 1


def test_suggest_draws_what_it_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["suggest", "made_here:searched", "--plot", "rates.png"]) == 0
    assert "learning rate: " in capsys.readouterr().out
    assert (here / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert main(["suggest", "made_here:searched", "--plot", "rates.doc"]) == 1
    assert "ends in .png, .svg, .pdf" in capsys.readouterr().err
