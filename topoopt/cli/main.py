"""From the command line to a command and its exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from topoopt.cli.arguments import parser
from topoopt.errors import TopoError
from topoopt.terminal import clean

MENDABLE, FAULT, INTERRUPTED, NO_READER = 1, 70, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. Whatever goes wrong is one line on stderr, without a traceback."""
    arguments = parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return NO_READER
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except (TopoError, OSError) as error:
        return _fail(str(error), MENDABLE, traced=arguments.traceback)
    except Exception as error:
        said = f"{type(error).__name__}: {error} (a fault of topoopt's own; --traceback shows where)"
        return _fail(said, FAULT, traced=arguments.traceback)
    return status


def _fail(message: str, status: int, *, traced: bool = False) -> int:
    if traced:
        traceback.print_exc()
    one_line = " ".join(clean(" ".join(message.split())).split())
    with contextlib.suppress(OSError):
        print(f"topoopt: {one_line}", file=sys.stderr)
    _let_go_of_stdout(only_if_broken=True)
    return status


def _let_go_of_stdout(*, only_if_broken: bool = False) -> None:
    """Point stdout nowhere, so that the interpreter's own flush at exit does not fail once more."""
    try:
        sys.stdout.flush()
        broken = False
    except (OSError, ValueError):
        broken = True
    if broken or not only_if_broken:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
