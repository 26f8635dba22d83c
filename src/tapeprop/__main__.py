"""`python -m tapeprop`: the command line."""

import sys

from tapeprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
