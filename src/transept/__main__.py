"""`python -m transept`, and `torchrun -m transept`: the command line."""

import sys

from transept.cli.main import command

if __name__ == "__main__":
    sys.exit(command())
