"""The process that `offbeat VERB` starts; `python -m launch VERB` is the same, from a source tree not installed."""

import sys

from launch.output.process import working_directory


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
    from actors.errors import INTERRUPTED
    from launch.output.process import interrupts, streams, supervisor

    runs = supervisor.starts_run(sys.argv[1:])
    try:
        interrupts.heed()
        streams.install()
        if supervisor.wanted(sys.argv[1:]):
            return supervisor.supervise([sys.executable, *sys.orig_argv[1:]])
        supervisor.be_driver()
        from launch.cli import main

        code = main(told=runs)
    except KeyboardInterrupt:  # while modules are imported
        code = INTERRUPTED
    if runs and code == INTERRUPTED:
        supervisor.say_interrupted()
    supervisor.tell("end", code)
    return code


if __name__ == "__main__":
    sys.exit(entry())
