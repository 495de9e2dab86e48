"""What is shipped is whole: the wheel runs without the repository, the sdist is the repository."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import topoopt

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = {
    ".cache", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__", "runs", "topoopt-demo", "trainer_output", "wandb"
}  # fmt: skip
LEFT_OUT = shutil.ignore_patterns(*LEFT_BEHIND, ".git", ".venv", "*.egg-info", "build", "dist", "site")
SHIPPED = ("topoopt", "tests", "docs", "examples", "benchmarks")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, made of a copy: building leaves files beside the source."""
    place = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, place / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(place / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place


def files(*folders: str) -> set[str]:
    """Files of the repository, as a build should find them."""
    found = [file.relative_to(ROOT) for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    return {str(file) for file in found if LEFT_BEHIND.isdisjoint(file.parts) and file.suffix != ".pyc"}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in inside if not name.startswith(f"topoopt-{topoopt.__version__}.dist-info/")}
    assert package == files("topoopt")
    assert {"topoopt/py.typed", "topoopt/report/templates/page.html.j2"} <= package


def test_the_sdist_holds_the_repository(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files(*SHIPPED) | {
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "mkdocs.yml",
    }
    assert wanted <= inside


def test_the_metadata_passes_the_registries_check(built: Path) -> None:
    packages = [str(file) for file in sorted(built.glob("*.whl")) + sorted(built.glob("*.tar.gz"))]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *packages], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_version_stands_in_one_place(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"topoopt-{topoopt.__version__}.dist-info/METADATA").decode()
    assert email.message_from_string(metadata)["Version"] == topoopt.__version__
    assert f'"{topoopt.__version__}"' not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == topoopt.__version__
    assert f"## [{citation['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
