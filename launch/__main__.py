"""The process that `offbeat VERB` starts; `python -m launch VERB` is the same, from a source tree not installed."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

from launch.output.process import working_directory

MANY_OBJECTS = 50_000
"""New objects before Python looks for garbage. Modules are none, and the usual 700 cost a fifth of their imports."""


def entry() -> int:
    """Run this process's command line; one that starts a run goes to a process apart, under this one as supervisor.

    The working directory is looked at first: a file there may have the name of what everything else imports.
    """
    problem = working_directory.problem()
    if problem is not None and "--help" not in sys.argv:
        from actors.foreign.text import shown

        print(shown(f"offbeat: error: {problem}"), file=sys.stderr)
        return 2
    working_directory.join(sys.path)
    gc.set_threshold(MANY_OBJECTS)
    from actors.errors import INTERRUPTED
    from launch.output.process import interrupts, streams, supervisor

    runs, codes = supervisor.starts_run(sys.argv[1:]), list[int]()
    atexit.register(_leave, codes)  # the first to be registered is called last
    try:
        interrupts.heed()
        streams.install()
        if supervisor.wanted(sys.argv[1:]):
            return supervisor.supervise([sys.executable, *sys.orig_argv[1:]])
        supervisor.be_driver()
        from launch.cli import main

        code = streams.finish(main(told=runs))
    except KeyboardInterrupt:  # while modules are imported
        code = INTERRUPTED
    if runs and code == INTERRUPTED:
        supervisor.say_interrupted()
    supervisor.tell("end", code)
    if runs:
        codes.append(code)
    return code


def _leave(codes: Sequence[int]) -> None:
    """End a run's process at once if it has a code: to take its modules apart costs a second and helps nobody."""
    for code in codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(entry())
