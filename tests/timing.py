"""How long a call computes, told so that a slow machine and other tests' objects change no verdict."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def assert_quick(call: Callable[[], object], seconds: float, tries: int = 3) -> None:
    """Fail if `call` takes more than `seconds` of CPU time in each of `tries`.

    The garbage collector rests meanwhile: it would visit all that earlier tests left in this process.
    """
    taken = []
    for _ in range(tries):
        gc.disable()
        try:
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
        finally:
            gc.enable()
        if taken[-1] < seconds:
            return
    raise AssertionError(f"took {', '.join(f'{each:.2f}' for each in taken)} s; allowed: {seconds:g} s")
