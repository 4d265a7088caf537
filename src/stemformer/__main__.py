"""`python -m stemformer` is the command line."""

import sys

from stemformer.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
