"""Mutation testing: one small change in the source at a time, and the tests of its room must notice.

    python tests/mutants.py [--room control] [--count 100] [--seed 0] [--only control/hold.py:97 ...]

Changes are drawn at random from all places of a room: comparisons, signs, `and`/`or`, `min`/`max`, conditions, numbers. Each is
tried in a fork of one process that has torch loaded; the tests run from the quickest to the slowest, to the first that fails.
Prints the survivors, and the share that was noticed of those that change anything. Of our own, because mutmut leaves alone what
stands outside of functions, where our thresholds are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
SLOW = 5
"""Seconds of CPU; tests that take longer are left out: they train, or start programs, in which nothing is changed."""
HANGS = 3
"""A mutant whose tests take so many times the CPU of those of the source itself, and a minute, hangs: it is noticed."""
ASLEEP = 3600
"""So it is after so many seconds by the clock: not far fewer, a busy machine is no hang."""
ROOMS = {
    "critical": (["critical.py"], ["control/test_critical.py"]),
    "control": (["control/*.py"], ["control"]),
    "verdict": (["verdict/rule.py", "verdict/evidence.py"], ["verdict/test_verdict_rule.py"]),
    "geometry": (["geometry/*.py"], ["geometry"]),
    "curvature": (
        [f"curvature/{name}.py" for name in ("krylov", "rules", "rates", "passage", "lean/few", "lean/pieces")],
        [
            f"curvature/test_curvature_{name}.py"
            for name in ("passage", "pieces", "lanczos", "rules", "forms", "crossing", "engines", "tape")
        ],
    ),
}
"""Room -> (what is changed, the tests that must notice)."""
EQUIVALENT = {
    (
        "curvature/passage.py",
        "if abs(power - round(power)) < 1e-6 or (1 <= count <= LARGEST_COUNT and abs(1 / c - count) < 1e-6 * count) or c > 1:",
        "`1` -> `2`",
    ): "a count of 1 is a factor of 1, which has been told before",
    (
        "curvature/passage.py",
        "if abs(power - round(power)) < 1e-6 or (1 <= count <= LARGEST_COUNT and abs(1 / c - count) < 1e-6 * count) or c > 1:",
        "`c > 1` -> `c >= 1`",
    ): "a factor of 1 has been told before",
    ("control/ramp.py", '"still": 0,', "`0` -> `1`"): "counted anew at the next look, before anything asks for it",
    (
        "control/hold.py",
        'return (wanted, "target") if wanted <= GROWTH * last else (GROWTH * last, "growth")',
        "`wanted <= GROWTH * last` -> `wanted < GROWTH * last`",
    ): "where the two are equal so are the rates",
    (
        "control/hold.py",
        "if faded and wanted > last:",
        "`wanted > last` -> `wanted >= last`",
    ): "where the two are equal so are the rates",
    (
        "geometry/extremes.py",
        "self._place = torch.where(best > self._best, place, self._place)",
        "`best > self._best` -> `best >= self._best`",
    ): "of two extremes that are alike either may be named",
    (
        "control/preserve.py",
        'require_number("Preserve", "keep", self.keep, "a share in [0, 1)", -SMALLEST, 1 - 1e-9)',
        "`1e-09` -> `1.5000000000000002e-09`",
    ): "stands for the open end of an interval",
    (
        "geometry/step.py",
        "contractions = inner.div_(u2).mul_(-self._t).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)",
        "`-math.inf` -> `+math.inf`",
    ): "a pair at one place has no inner product: it is NaN, never infinite",
}
"""(File, line, change) -> why nothing that anybody could see depends on it."""
_PAIRS = (
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Add, ast.Sub),
    (ast.Mult, ast.Div), (ast.And, ast.Or),
)  # fmt: skip
SWAPS: dict[type, type] = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that can be changed: code, not annotations, messages or formats."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns", "exc", "decorator_list"):
            for inner in _below(getattr(node, field, None)):
                skipped.update(map(id, ast.walk(inner)))
        if isinstance(node, ast.JoinedStr):
            skipped.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) not in skipped and change(node, dry=True):
            yield node


def _below(value: Any) -> list[ast.AST]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)]


def change(node: Any, *, dry: bool = False) -> str:
    """Change a node in place; what was done, or "" where there is nothing to change."""
    was = "" if dry else ast.unparse(node)
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            new: Any = [SWAPS[type(op)]()]
            where = "ops"
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            where, new = "op", SWAPS[type(op)]()
        case ast.If(test=test) | ast.IfExp(test=test):
            where, new = "test", ast.UnaryOp(ast.Not(), test)
        case ast.UnaryOp(op=ast.USub()):
            where, new = "op", ast.UAdd()
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            where, new = "func", ast.Name(NAMES[name], ast.Load())
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            where, new = "value", value + 1 if isinstance(value, int) else value * 1.5 + (value == 0)
        case ast.Constant(value=bool() as value):
            where, new = "value", not value
        case _:
            return ""
    if dry:
        return where
    setattr(node, where, new)
    ast.fix_missing_locations(node)
    lines = (was.splitlines()[0], ast.unparse(node).splitlines()[0])
    return f"`{lines[0][:70]}` -> `{lines[1][:70]}`"


class Changed(MetaPathFinder, Loader):
    """Imports one module of topoopt from a changed tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        package = self.path.name == "__init__.py"
        folder = [str(self.path.parent)] if package else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=folder
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class InOrder:
    """Runs the tests from the quickest to the slowest, or finds out how long each takes."""

    def __init__(self, known: dict[str, float]) -> None:
        self.known, self.seen = known, dict[str, float]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if self.known.get(item.nodeid, 0.0) < SLOW]
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        began = sum(os.times()[:4])
        result = yield
        self.seen[item.nodeid] = sum(os.times()[:4]) - began
        return result


def run(tests: list[str], order: InOrder) -> int:
    """The tests' exit code; what fails is not made smaller, and nothing is remembered."""
    quick = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]
    hypothesis.settings.register_profile("mutants", phases=quick, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    return int(pytest.main([*options, *(str(ROOT / "tests" / test) for test in tests)], plugins=[order]))


def durations(tests: list[str]) -> dict[str, float]:
    """Seconds of CPU of each test of a room with the source as it is, in a fork; they must pass."""
    file = Path(tempfile.mkdtemp()) / "durations.json"
    child = os.fork()
    if not child:
        order = InOrder({})
        code = run(tests, order)
        others = [name for name, module in sys.modules.items() if not _is_own(module)]
        file.write_text(json.dumps([order.seen, others]))
        os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"the tests {tests} fail without any change")
    seen, others = json.loads(file.read_text())
    for name in others:  # loaded once, for all forks
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return seen


def _is_own(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or (Path(file).is_relative_to(ROOT) and ".venv" not in file)


def noticed(path: Path, tree: ast.Module, tests: list[str], known: dict[str, float]) -> bool:
    """Whether the tests fail, in a fork."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, 60 + HANGS * sum(known.values()))  # ends the fork
        signal.alarm(ASLEEP)
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        sys.meta_path.insert(0, Changed(name, path, tree))
        os._exit(run(tests, InOrder(known)))
    return os.waitpid(child, 0)[1] != 0


def drawn(room: str, count: int, seed: int, only: list[str]) -> tuple[list[tuple[Path, int]], int]:
    """Places of a room, as file and number, and how many there are; `only`: those of these lines, all of them."""
    patterns = ROOMS[room][0]
    found = [path for pattern in patterns for path in sorted((ROOT / "topoopt").glob(pattern))]
    every = [
        (path, i, f"{path.relative_to(ROOT / 'topoopt')}:{getattr(node, 'lineno', 0)}")
        for path in found
        for i, node in enumerate(places(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    some = random.Random(seed).sample(every, min(count, len(every)))
    taken = [one for one in every if one[2] in only] if only else some
    return [(path, i) for path, i, _ in taken], len(every)


def main() -> int:
    """Draw mutants and try them; prints survivors and the share that was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", choices=ROOMS, action="append")
    parser.add_argument("--count", type=int, default=100, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE:LINE", help="every mutant of these lines")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for room in asked.room or ROOMS:
        some, every = drawn(room, asked.count, asked.seed, asked.only)
        try_room(room, some, every)
    return 0


def try_room(room: str, some: list[tuple[Path, int]], every: int) -> None:
    """Try these mutants of a room and say what came of it."""
    tests = ROOMS[room][1]
    known = durations(tests)
    killed = tried = same = 0
    try:
        for path, i in some:
            lines = path.read_text(encoding="utf-8").splitlines()
            tree = ast.parse("\n".join(lines))
            node: Any = list(places(tree))[i]
            what = change(node)
            seen = noticed(path, tree, tests, known)
            tried, killed = tried + 1, killed + seen
            print(f"{tried} of {len(some)} tried", end="\r", file=sys.stderr, flush=True)
            if seen:
                continue
            file = str(path.relative_to(ROOT / "topoopt"))
            why = EQUIVALENT.get((file, lines[node.lineno - 1].strip(), what), "")
            same += bool(why)
            print(f"{file}:{node.lineno}: {what} {f'changes nothing: {why}' if why else 'survives'}", flush=True)
    finally:  # told to stop, it says how far it has come
        share = f"{killed / max(1, tried - same):.0%}"
        print(
            f"{room}: {killed} of {tried} noticed, {same} change nothing: {share} of the others; {every} places",
            flush=True,
        )


if __name__ == "__main__":
    raise SystemExit(main())
