"""Foreign input: records, states of checkpoints, configs and policies of others. Only a TopoError may come out.

    python tests/faults/fuzz.py [--examples 5000]     hypothesis: documents with places changed, and bytes damaged; prints counts
    python tests/faults/fuzz.py --atheris config [-max_total_time=60 ...]    one target, guided by coverage (`pip install atheris`)

atheris has wheels for Linux and CPython 3.11 to 3.13, so it is no dependency; `make fuzz` uses it where it is installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from fault_training import Problem
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import a_run, write_run

from topoopt import Hold, Preserve, Schedule, Simplify, TopoConfig, TopoOptimizer
from topoopt.control.registry import policy_from_dict, policy_to_dict
from topoopt.errors import TopoError
from topoopt.report import read

FOLDER = Path(tempfile.mkdtemp())
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    2**63,
    10**400,
    "",
    "nan",
    "NaN",
    "1",
    "auto",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    {"": {}},
]
ODD += [
    float("nan"),
    float("inf"),
    -0.0,
    ["x"] * 50,
    {"policy": "preserve"},
    {"policy": ["a"]},
    "os:system",
    "a" * 5000,
]


def config(data: bytes) -> None:
    """`TopoConfig.from_json`, and what it gives is a config that can be written again."""
    found = TopoConfig.from_json(data)
    assert TopoConfig.from_json(found.to_json()) == found


def policy(data: bytes) -> None:
    """`policy_from_dict`."""
    found = policy_from_dict(_json(data))
    assert found.name
    assert isinstance(found.start(), dict)


def record(data: bytes) -> None:
    """`report.read`, its tables and its face in notebooks; lines that cannot be read are named."""
    path = FOLDER / "record.jsonl"
    path.write_bytes(data)
    found = read(path)
    for of in ("measurements", "readings", "layers", "decisions"):
        assert found.table(of) is not None
    assert found._repr_html_()
    if found.problems:
        raise TopoError("; ".join(found.problems))


_problem = Problem(lr=3.0)
_topo = TopoOptimizer(_problem.optimizer, _problem.model, mode="preserve", every=1, budget=None, homology=0)
for _ in range(2):
    _problem.optimizer.zero_grad()
    _problem.loss().backward()
    _topo.step()
_STATE = copy.deepcopy(_topo.topo_state_dict())


def state(data: bytes) -> None:
    """`load_topo_state_dict`, which refuses whole by itself; a factor that is one is in force afterwards, and a step goes."""
    given = _json(data)
    refused = _topo.topo.faults.counts["state_refused"]
    _topo.load_topo_state_dict(given)
    assert 0 < _topo.topo.steering.decision.scale < 1e6
    taken = _topo.topo.faults.counts["state_refused"] == refused
    _topo.step()
    assert _topo.param_groups[0]["lr"] == 3.0
    _topo.load_topo_state_dict(_STATE)
    if not taken:
        raise TopoError("refused")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TopoError(f"no JSON: {type(error).__name__}") from error


def seeds(target: str) -> list[Any]:
    """Good documents, as JSON values; a record is a list of them, one a line."""
    policies = [Preserve(), Hold(), Simplify(), Schedule({0: Simplify(), 100: Preserve()})]
    if target == "config":
        return [json.loads(TopoConfig(mode=mode).to_json()) for mode in ("report", *policies)]  # type: ignore[arg-type]
    if target == "policy":
        return [policy_to_dict(one) for one in policies]
    if target == "state":
        return [_STATE]
    path = write_run(Path(tempfile.mkdtemp()) / "seed.jsonl", a_run("one"))
    return [[json.loads(line) for line in path.read_text().splitlines()]]


def text_of(target: str, document: Any) -> bytes:
    """A document as its file holds it."""
    if target == "record" and isinstance(document, list):
        return "\n".join(json.dumps(line) for line in document).encode()
    return json.dumps(document).encode()


odd = st.sampled_from(ODD).map(copy.deepcopy)  # what stands in a document may itself be changed
TARGETS: dict[str, Callable[[bytes], None]] = {"config": config, "policy": policy, "record": record, "state": state}


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [(document, key) for key in keys] + [one for key in keys for one in places(document[key])]


@st.composite
def inputs(draw: st.DrawFn, target: str) -> bytes:
    """A good document in which some places hold something else, are gone, or whose bytes are damaged."""
    document = copy.deepcopy(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 3))):
        where = places(document)
        if not where:
            break
        inside, key = draw(st.sampled_from(where))
        if draw(st.integers(0, 9)) == 0:
            del inside[key]
        elif draw(st.integers(0, 9)) == 0 and isinstance(inside, dict):
            inside[draw(st.text(max_size=8))] = draw(odd)
        else:
            inside[key] = draw(odd | st.integers() | st.floats() | st.text(max_size=8))
    text = bytearray(text_of(target, document))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        start = draw(st.integers(0, max(0, len(text) - 1)))
        text[start : start + draw(st.integers(0, 20))] = draw(st.binary(max_size=8))
    return bytes(text)


def fuzz(target: str, examples: int) -> Counter[str]:
    """Give a target so many inputs; counts of what was taken and refused. Anything but a TopoError is raised."""
    counts: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(data=inputs(target))
    def one(data: bytes) -> None:
        try:
            TARGETS[target](data)
            counts["taken"] += 1
        except TopoError:
            counts["refused"] += 1

    one()
    return counts


def guided(target: str, arguments: list[str]) -> None:
    """The same by atheris; runs until it is told to stop, or something else than a TopoError comes out."""
    import atheris  # type: ignore[import-not-found]

    def one(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except TopoError:
            return

    corpus = Path(tempfile.mkdtemp())
    for i, document in enumerate(seeds(target)):
        (corpus / str(i)).write_bytes(text_of(target, document))
    for name in (
        "config",
        "control.registry",
        "report.reading",
        "report.border",
        "optimizer.state",
        "optimizer.steering",
    ):
        for function in vars(importlib.import_module(f"topoopt.{name}")).values():
            if inspect.isfunction(function) and function.__module__.startswith("topoopt."):
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--atheris", choices=TARGETS)
    asked, rest = parser.parse_known_args()
    logging.getLogger("topoopt").setLevel(logging.ERROR)
    if asked.atheris:
        guided(asked.atheris, rest)
    for name in TARGETS:
        print(f"{name:8} {dict(fuzz(name, asked.examples))}", flush=True)
