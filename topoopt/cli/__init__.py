"""The command `topoopt`; `python -m topoopt` is the same.

Exit statuses: 0 done; 1 something that the caller can mend, said in one line; 2 wrong usage; 3 `check` found a verdict worse
than asked for; 70 a fault of topoopt's own, said in one line (`--traceback` shows where); 130 interrupted; 141 the reader of
the output has gone.
"""

from topoopt.cli.main import main

__all__ = ["main"]
