"""The README is followed from its top to its end in one folder: every Python block runs, every command does what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from doc_blocks import Block, blocks

from topoopt.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from follow import MAY_FAIL, deeds

README = Path(__file__).parents[2] / "README.md"
BLOCKS = blocks(README)
AT = {block.line: block for block in BLOCKS}
DEEDS = list(deeds(README.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader works: what one block leaves behind the next one finds."""
    return tmp_path_factory.mktemp("reader")


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5
    assert [deed.line - 1 for deed in DEEDS if deed.program] == [block.line for block in BLOCKS]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: f"line {deed.line}: {deed.name}")
def test_what_it_says_can_be_done(deed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if deed.program:
        block: Block = AT[deed.line - 1]
        if block.missing:
            pytest.skip(f"not installed: {', '.join(block.missing)}")
        block.run({"__name__": "readme"})
    elif deed.command[0] == "topoopt":
        assert main(list(deed.command[1:])) in (0, MAY_FAIL.get(deed.command[:2], 0))
    else:
        assert deed.command[0] == "make"  # tests/docs/test_packaging.py looks at what that stands for


def test_a_reader_has_a_phase_plot_a_comparison_and_a_page(folder: Path) -> None:
    """After the blocks above."""
    pytest.importorskip("matplotlib")
    for name in ("phases.png", "compare.png", "gentle/record.jsonl", "bold/summary.json", "gentle/comparison.html"):
        assert (folder / name).stat().st_size > 0, name


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
