"""`python -m mirrormap`: the same as the `mirrormap` command."""

import sys

from mirrormap.cli import main

if __name__ == "__main__":
    sys.exit(main())
