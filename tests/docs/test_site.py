"""The documentation: its blocks run, its commands parse, it names every key, and it builds without a warning."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import measurements
import pytest
from doc_blocks import Block, Session, blocks

from topoopt import TopoConfig, TopoOptimizer
from topoopt.cli.arguments import parser
from topoopt.integrations import rows
from topoopt.measurement import GroupMeasurement, SpectralReading
from topoopt.verdict import STATES, Verdict

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = re.compile(r"```sh\n(.*?)```", flags=re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs"))


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[Session, Path]]:
    """For each page the blocks' namespace, and a folder that they run in."""
    return {page: (Session(page), tmp_path_factory.mktemp("page")) for page in {block.page for block in BLOCKS}}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{name_of(block.page)}:{block.line}")
def test_a_block_runs(
    block: Block, sessions: dict[Path, tuple[Session, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, folder = sessions[block.page]
    monkeypatch.chdir(folder)
    session.run_to(block)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_that_are_shown_can_be_typed(page: Path) -> None:
    for shown in SHELL.findall(page.read_text(encoding="utf-8")):
        for line in shown.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "topoopt":
                parser().parse_args(words[1:])  # exits, and so fails, where it is not a command


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([\w/.]+)`", page))
    known = dict.fromkeys((f.name for f in fields(GroupMeasurement)), 1)
    pairs = dict.fromkeys(("distortion", "distortion_window", "distortion_total"), (1.0, 1.0))
    homology = {"diagrams_step": 0, "pending": False, "total_persistence": (1.0, 1.0), "proximity_step": 0}
    layer = GroupMeasurement(**(known | pairs | homology))  # type: ignore[arg-type]
    shown = measurements.make(r_field=0.1, loss=1.0, seconds=1.0, groups={"LAYER": layer}).scalars()
    keys = {re.sub(r"/\d+$", "", key) for key in shown}
    names = {f.name for kind in (SpectralReading, GroupMeasurement, Verdict) for f in fields(kind)}
    assert keys | names <= explained
    assert {state for state in STATES if f"**{state}**" not in page} == set()


def test_every_panel_of_the_trackers_is_explained() -> None:
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    trackers = page.split("## In W&B, TensorBoard and trackio")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(topo/\w+)`", trackers, flags=re.MULTILINE)) == set(rows.HEADLINES)
    assert {rows.DETAILS, rows.LAYERS} <= set(re.findall(r"`(topo_\w+/)", trackers))


def test_every_setting_is_explained() -> None:
    page = (ROOT / "docs" / "how-to" / "budget.md").read_text(encoding="utf-8")
    assert {f.name for f in fields(TopoConfig)} <= set(re.findall(r"`(\w+)`", page))
    told = dict(re.findall(r"^\| `(\w+)`(?:, `\w+`)* \| `?\"?([^`\"|]+?)\"?`? \|", page, re.MULTILINE))
    assert told == {name: str(getattr(TopoConfig(), name)) for name in told}
    assert len(told) >= len(fields(TopoConfig)) - 1


def test_every_name_that_the_optimizer_shows_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "optimizer.md").read_text(encoding="utf-8")
    shown = {name for name, value in vars(TopoOptimizer).items() if type(value).__name__ == "_Shown"}
    assert shown
    assert shown <= set(re.findall(r"^\| `(\w+)`", page, flags=re.MULTILINE))


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?:[^\"> ]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], page.name


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_picture_that_is_shown_is_there(page: Path) -> None:
    for shown in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / shown).is_file(), shown


def test_pictures_are_small_and_have_their_script() -> None:
    images = ROOT / "docs" / "images"
    scripts = "".join(file.read_text(encoding="utf-8") for file in images.glob("*.py"))
    for picture in [*images.glob("*.svg"), *images.glob("*.png")]:
        assert f'"{picture.stem}"' in scripts
        assert picture.stat().st_size < 100_000
