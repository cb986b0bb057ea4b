"""The process that `offbeat VERB` starts; `python -m launch VERB` is the same, from a source tree not installed."""

import sys

from launch.cli import main
from launch.output.process import interrupts, supervisor


def entry() -> int:
    """Run this process's command line; one that starts a run goes to a process apart, under this one as supervisor."""
    if supervisor.wanted(sys.argv[1:]):
        return supervisor.supervise([sys.executable, *sys.orig_argv[1:]])
    supervisor.be_driver()
    interrupts.heed()
    code = main()
    supervisor.tell("end", code)
    return code


if __name__ == "__main__":
    sys.exit(entry())
