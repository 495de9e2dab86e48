"""The harness of the benchmarks, which drives a run by a policy without a wrapper in between."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "paper" / "driving.py"


@pytest.fixture(scope="session")
def driving() -> ModuleType:
    spec = importlib.util.spec_from_file_location("driving", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module
