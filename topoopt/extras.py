"""What only some need: libraries that an extra brings, imported when they are used, named when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from topoopt.errors import MissingExtraError


def require(module: str, *, extra: str) -> Any:
    """Import and return a module that `pip install 'topoopt[extra]'` brings.

    Args:
        module: its import name, dots allowed ("matplotlib.figure").
        extra: name of the extra in topoopt's metadata.

    Raises:
        MissingExtraError: when it is not installed, with the command that installs it; it is an ImportError too.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        found = importlib.util.find_spec(library) is not None
        why = f"is installed but cannot be imported ({error})" if found else "is not installed"
        raise MissingExtraError(f"{library} {why}: pip install 'topoopt[{extra}]'") from error
