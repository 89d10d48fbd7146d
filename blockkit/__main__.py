"""Run the command line: ``python -m blockkit``."""

import sys

from blockkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
