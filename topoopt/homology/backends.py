"""Vietoris-Rips persistence of a distance matrix on the host, by a library."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np

from topoopt.errors import ConfigError
from topoopt.homology import child

Rips = Callable[[np.ndarray, int], list[np.ndarray]]
"""(distances (n, n), highest degree) -> a diagram for each degree."""
MODULES = {"redzed": "redzed_tda", "ripser": "ripser"}
"""By order of preference: redzed-tda is 20 to 40 times faster than ripser, and its bars are ripser's bit for bit."""


def choose(backend: str = "auto") -> str:
    """Return the first back-end that is installed, "redzed" or "ripser"; a name given is checked.

    Raises:
        ConfigError: for an unknown name, or one that is not installed.
    """
    installed = [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]
    if backend == "auto" and installed:
        return installed[0]
    if backend != "auto" and backend not in MODULES:
        raise ConfigError(f"backend={backend!r} is not known: give auto, {' or '.join(MODULES)}")
    if backend not in installed:
        raise ConfigError(
            f"backend={backend!r}: homology above degree 0 needs redzed-tda (pip install redzed-tda) or ripser "
            f"(pip install 'topoopt[ripser]'); installed: {', '.join(installed) or 'neither'}"
        )
    return backend


def rips(backend: str) -> Rips:
    """Return the function of a back-end that `choose` has returned."""
    return partial(child.compute, backend)
