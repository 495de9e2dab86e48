"""The notebook: what stands in it is its source, run to its end without an error, and its cells still run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

from notebook import NOTEBOOK, SOURCE, cells  # noqa: E402 -- a script beside the pages, no package

CELLS = cells(SOURCE.read_text(encoding="utf-8"))


def stored() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_its_source() -> None:
    """`python docs/notebook.py` makes it anew."""
    there = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in stored()]
    assert there == [(kind, text.strip()) for kind, text in CELLS]


def test_it_was_run_and_shows_pictures_tables_and_a_verdict() -> None:
    code = [cell for cell in stored() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 4
    assert kinds.count("text/html") >= 4
    assert NOTEBOOK.stat().st_size < 400_000


def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("sklearn", "matplotlib", "pandas"):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for kind, text in CELLS:
        if kind == "code":
            exec(compile(text, str(SOURCE), "exec"), names)
    assert names["bold"].verdict.state
    assert (tmp_path / "gentle" / "record.jsonl").exists()
