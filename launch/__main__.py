"""`python -m launch VERB`: the same as `offbeat VERB`, from a source tree that is not installed."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
