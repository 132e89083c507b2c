"""`python -m transept`, and `torchrun -m transept`: the command line."""

import sys

from transept.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
