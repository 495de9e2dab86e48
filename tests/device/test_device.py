"""topoopt on a device made of the CPU (tests/accelerator.py): its registration belongs to a process, so it has one of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("on_accelerator.py")
NAMES = [
    node.name for node in ast.parse(CASES.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Test -> what went wrong in each of its cases, "" where nothing did."""
    report = tmp_path_factory.mktemp("device") / "report.xml"
    command = [sys.executable, "-m", "pytest", str(CASES), f"--junitxml={report}", "-p", "no:cacheprovider", "-m", ""]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=CASES.parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    found: dict[str, list[str]] = {}
    for case in xml.parse(report).iter("testcase"):
        wrong = "\n".join(part.text or part.get("message", "") for part in case if part.tag in ("failure", "error"))
        found.setdefault(case.get("name", "").split("[")[0], []).append(f"{case.get('name')}: {wrong}" if wrong else "")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_on_the_device(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes.get(name), f"{name} did not run"
    wrong = [one for one in outcomes[name] if one]
    assert not wrong, "\n\n".join(wrong)
