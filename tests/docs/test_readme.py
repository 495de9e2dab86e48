"""Every Python block of the README runs, each by itself, in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import Block, blocks

README = Path(__file__).parents[2] / "README.md"
BLOCKS = blocks(README)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.missing:
        pytest.skip(f"not installed: {', '.join(block.missing)}")
    monkeypatch.chdir(tmp_path)
    block.run({"__name__": "readme"})


def test_the_verdict_that_is_shown_is_what_its_block_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word by word; the numbers are of one machine's arithmetic."""
    (shown,) = re.findall(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    BLOCKS[0].run({"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert [words(line) for line in printed] == [words(line) for line in shown.splitlines()]


def words(line: str) -> str:
    return re.sub(r"\d[\d.e-]*\b", "#", line)
