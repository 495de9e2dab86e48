"""The accelerators' benchmarks run end to end, small, on whatever there is: a CPU in every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / name), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_models_and_geometry(tmp_path: Path) -> None:
    run("gpu.py", "--tiny", "--steps", "45", "--out", str(tmp_path))
    (file,) = tmp_path.glob("gpu-*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"machine", "versions", "date", "rows"} <= found.keys()
    assert [row["model"] for row in found["rows"]] == ["GPT-2 tiny", "ResNet tiny"]
    for row in found["rows"]:
        assert row["measured"].keys() >= {"step", "reading", "measurement", "first measurement", "setup", "peak GiB"}
        assert row["measured"]["groups"] > 1
        assert not row["measured"]["unread"]
    assert all(row["times the roofline"] > 0 for row in found["geometry"]["rows"])
    assert {row["what"] for row in found["geometry"]["rows"]} >= {"X X^T", "distances", "H0 from points"}


def test_a_group_alone() -> None:
    said = run("geometry_gpu.py", "--n", "64", "--d", "16")
    assert "H0 from points" in said
    assert "peak memory" in said
