"""The command, end to end: the demo on real digits, its report, and checkpoints looked into."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from topoopt import Phase
from topoopt.cli import main
from topoopt.demo import DemoSettings, run
from topoopt.report import read


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo")
    stream = io.StringIO()
    run(DemoSettings(out=out, steps=600, every=20, budget=1.0), stream)
    return out, stream.getvalue()


def test_the_demo_measures_and_says_where_everything_is(demo: tuple[Path, str]) -> None:
    out, text = demo
    record = read(out)
    assert len(record.measurements) >= 20
    assert {m.phase for m in record.measurements} >= {Phase.CONSTRAINED, Phase.PERMISSIVE}
    last = record.measurements[-1]
    assert all(len(group.diagrams) == 2 for group in last.groups.values())
    assert len(last.groups) == 2
    for name in ("record.jsonl", "picture.png", "report.html"):
        assert (out / name).stat().st_size > 1000
        assert str(out / name) in text
    assert "eta* in" in text
    assert "test accuracy" in text


def test_the_page_stands_alone(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert '"timeline":{"step":[0,' in page
    assert "nearest pair" in page


def test_report_writes_beside_the_record(demo: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = demo
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert "measurements" in capsys.readouterr().out


def test_a_missing_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("topoopt: there is no record")
    assert error.count("\n") == 1


def test_the_demo_refuses_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "1"]) == 1
    assert "steps=1" in capsys.readouterr().err


def test_inspect_compares_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2))\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2))
    torch.save(model.state_dict(), "a.pt")
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[operator]
    torch.save({"model": model.state_dict()}, "b.pt")
    assert main(["inspect", "a.pt", "b.pt", "--model", "mymodel:make"]) == 0
    text = capsys.readouterr().out
    assert "hidden" in text
    assert "from a.pt to b.pt" in text
    assert main(["inspect", "a.pt", "--model", "mymodel:make", "--groups"]) == 0
    assert "1 groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.pt"], "no checkpoint at nothing.pt"),
        (["a.pt"], "--model module:callable"),
        (["a.pt", "--model", "nowhere"], "no module:callable"),
        (["a.pt", "--model", "nowhere:at_all"], "cannot be imported"),
        (["."], "no config.json"),
    ],
)
def test_inspect_says_what_is_missing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, "a.pt")
    assert main(["inspect", *arguments]) == 1
    assert says in capsys.readouterr().err


def test_inspect_reads_a_hugging_face_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "bert.encoder.layer.0.intermediate.dense" in text
    assert "20" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert "topoopt 0." in capsys.readouterr().out
