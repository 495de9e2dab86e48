"""`python -m topoopt`."""

import sys

from topoopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
