"""The process of a run, as far as the command line does not see it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import atexit, sys
from launch.__main__ import _leave

class Module:
    def __del__(self):
        print("taken apart")

kept = Module()
codes = []
atexit.register(_leave, codes)
atexit.register(print, "closed")
codes += [int(each) for each in sys.argv[1:]]
sys.exit(5)
"""


def ended(*codes: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *codes], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_run_s_process_closes_what_is_open_and_takes_no_module_apart() -> None:
    assert ended("3") == (3, "closed\n")
    assert ended() == (5, "closed\ntaken apart\n")
