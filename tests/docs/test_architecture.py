"""The house has one direction of imports, and entering it costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import topoopt

PACKAGE = Path(topoopt.__file__).parent
BASE = {"errors", "extras"}
TENSORS = BASE | {"modules", "sharding", "device"}
MAY_IMPORT = {
    "errors": set(),
    "extras": {"errors"},
    "terminal": set(),
    "device": set(),
    "sharding": {"device"},
    "modules": set(),
    "parallel": {"errors", "sharding"},
    "reading": set(),
    "measurement": BASE | {"reading"},
    "neurons": TENSORS,
    "geometry": BASE | {"device"},
    "homology": BASE | {"geometry", "device"},
    "curvature": TENSORS,
    "critical": BASE | {"measurement"},
    "verdict": BASE | {"measurement", "critical"},
    "summary": BASE | {"measurement", "verdict"},
    "control": BASE | {"measurement"},
    "config": BASE | {"control"},
    "optimizer": TENSORS
    | {
        "",
        "parallel",
        "measurement",
        "config",
        "neurons",
        "geometry",
        "homology",
        "curvature",
        "critical",
        "control",
        "verdict",
        "summary",
    },
    "report": BASE | {"measurement", "verdict", "summary", "config", "neurons", "geometry", "homology"},
    "plots": BASE | {"measurement", "report"},
    "integrations": BASE
    | {
        "measurement",
        "critical",
        "verdict",
        "summary",
        "config",
        "control",
        "optimizer",
        "report",
        "neurons",
        "homology",
        "suggestion",
    },
    "suggestion": TENSORS | {"measurement", "config", "critical", "curvature", "neurons"},
    "demo": BASE | {"verdict", "summary", "measurement", "config", "optimizer", "report", "terminal"},
    "cli": BASE
    | {
        "demo",
        "report",
        "suggest",
        "suggestion",
        "verdict",
        "config",
        "neurons",
        "curvature",
        "homology",
        "terminal",
        "",
    },
    "__main__": {"cli"},
}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Rooms that a file imports, at any depth; "" for the package itself."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" if node.module == "topoopt" else node.module for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "topoopt":
                rooms.add(parts[1] if len(parts) > 1 else "")
    return rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_before_them(file: Path) -> None:
    room = room_of(file)
    assert imports(file) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", ["control", "critical.py", "measurement.py", "reading.py", "errors.py", "config.py"])
def test_policies_and_results_know_no_torch(room: str) -> None:
    path = PACKAGE / room
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        assert "import torch" not in file.read_text(encoding="utf-8")


def test_no_device_is_named_in_the_core() -> None:
    """Whatever torch.accelerator finds will do: only the switches of precision, which belong to one kind, are named."""
    named = {(f, line) for f in FILES for line in f.read_text(encoding="utf-8").splitlines() if "cuda" in line}
    assert {str(f.relative_to(PACKAGE)) for f, _ in named} <= {"geometry/precision.py"}
    assert all("torch.backends.cuda.matmul" in line for _, line in named)


def test_events_and_queues_are_in_one_place() -> None:
    waiting = re.compile(
        r"torch\.(Event|Stream)|current_stream|record_event|accelerator\.synchronize|event\.synchronize"
    )
    found = {str(f.relative_to(PACKAGE)) for f in FILES if waiting.search(f.read_text(encoding="utf-8"))}
    assert found == {"device.py"}


def test_importing_loads_no_leaf_and_does_no_work() -> None:
    code = (
        "import sys, topoopt; topoopt.TopoOptimizer, topoopt.discover, topoopt.Hold;"
        "import topoopt.geometry, topoopt.homology, topoopt.curvature, topoopt.report;"
        "heavy = {'transformers', 'accelerate', 'wandb', 'matplotlib', 'ripser', 'redzed_tda', 'sklearn', 'tensorboard'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_alone_does_not_load_torch() -> None:
    code = "import sys, topoopt; topoopt.Phase, topoopt.Preserve, topoopt.TopoConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", topoopt.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(topoopt, name) is not None
    assert name in dir(topoopt)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="TopoOptimizer"):
        topoopt.TopOptimizer  # noqa: B018 -- the access is what is tested


def test_the_repository_holds_no_absolute_paths() -> None:
    root = PACKAGE.parent
    for file in [*FILES, root / "README.md", root / "Makefile", root / "pyproject.toml"]:
        text = file.read_text(encoding="utf-8")
        assert "/home/" not in text
        assert "/root/" not in text
