"""Follows the README from its top to its end, as a newcomer would: `python tests/docs/follow.py`, and says the minutes it took.

Every Python block is a program of its own, every line of a shell block is typed, in order and in one folder, so that a
command finds the runs of the block above it. With `--fresh` it begins as they do: with a copy of the repository and nothing
installed, `make demo` and `pip install '.[all]'` included. Without it, what is installed here is used, and these two are
passed over by name. `make test` is passed over always: it is every check of the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FENCE = re.compile(r"```(?P<kind>python|sh)\n(?P<body>.*?)```", flags=re.DOTALL)
MAY_FAIL = {("topoopt", "check"): 3}
"""A command whose exit status is its answer."""


@dataclass(frozen=True)
class Deed:
    """One thing that the text asks for."""

    line: int
    command: tuple[str, ...]
    """Words of a shell line; empty for a program."""
    program: str = ""

    @property
    def name(self) -> str:
        """In a few words."""
        return shlex.join(self.command) if self.command else f"Python block of {self.program.count(chr(10))} lines"


def deeds(text: str) -> Iterator[Deed]:
    """All of a text's blocks, line by line where they are of a shell."""
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        if match["kind"] == "python":
            yield Deed(line, (), match["body"])
            continue
        for k, typed in enumerate(match["body"].splitlines()):
            if words := shlex.split(typed, comments=True):
                yield Deed(line + k, tuple(words))


def follow(
    text: str, folder: Path, python: str, passed_over: Sequence[str] = ("make",), *, installed: bool = False
) -> Iterator[tuple[Deed, float, str]]:
    """Do what a text asks for in a folder; yield each deed with its seconds, and why it was not done or failed ("" for neither)."""
    environment = {**os.environ} if installed else {**os.environ, "PYTHONPATH": str(ROOT)}
    for deed in deeds(text):
        if deed.command and deed.command[0] in passed_over:
            yield deed, 0.0, "passed over"
            continue
        if deed.command[:1] == ("topoopt",):
            command = [python, "-m", "topoopt", *deed.command[1:]]
        elif deed.command:
            command = list(deed.command)
        else:
            (folder / "block.py").write_text(deed.program, encoding="utf-8")
            command = [python, "block.py"]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        well = done.returncode in (0, MAY_FAIL.get(deed.command[:2], 0))
        yield deed, time.perf_counter() - began, "" if well else f"exit {done.returncode}: {done.stderr.strip()[-500:]}"


def fresh(folder: Path) -> Iterator[tuple[str, float, str]]:
    """A copy of the repository, and what its first lines say: `make demo`, then the extras."""
    pip = ["topoopt/.venv/bin/python", "-m", "pip", "install", "--quiet", "-c", "topoopt/constraints.txt"]
    for name, command in (
        ("git clone", ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", "topoopt"]),
        ("make demo", ["make", "-C", "topoopt", "demo", f"PYTHON={sys.executable}"]),
        ("pip install '.[all]'", [*pip, "./topoopt[all]"]),
    ):  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        yield name, time.perf_counter() - began, "" if done.returncode == 0 else done.stderr.strip()[-500:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow, and say how long each step took; exit status 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--fresh", action="store_true", help="begin with nothing installed")
    asked = parser.parse_args(arguments)
    folder, failed, total = Path(tempfile.mkdtemp()), False, 0.0
    if asked.fresh:
        os.environ.pop("PYTHONPATH", None)  # what is installed there is what is tried
    python = str(folder / "topoopt" / ".venv" / "bin" / "python") if asked.fresh else sys.executable
    told: list[Iterator[tuple[str, float, str]]] = [fresh(folder)] if asked.fresh else []
    told.append(
        (f"line {d.line}: {d.name}", took, why)
        for d, took, why in follow(README.read_text("utf-8"), folder, python, installed=asked.fresh)
    )
    for name, took, why in (one for part in told for one in part):
        print(f"{took:7.1f} s  {name}" + (f"  ({why})" if why else ""), flush=True)
        total, failed = total + took, failed or bool(why and why != "passed over")
    made = sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".html") or path.is_dir())
    print(f"{total / 60:.1f} minutes in all; made {', '.join(made)}")
    shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
