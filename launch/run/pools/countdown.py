"""Report the progress of a long step: a line now and then, with the time left. Knows nothing of the step."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

FIRST_SECONDS = 10.0
"""A step that ends sooner says nothing."""
SECONDS = 30.0  # between two lines
LONGEST_IN_SECONDS = 100  # longer times are given in minutes
ENOUGH = 0.1  # share of the parts from which the time left is foretold: parts that are begun together end together


class Countdown:
    """Counts the `total` parts of a step, such as sampled prompts, and reports progress to `say`."""

    def __init__(
        self, step: str, total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._step, self._total, self._say, self._clock = step, total, say, clock
        self._done, self._begun = 0, False
        self._set_off()

    def _set_off(self) -> None:
        self._started = self._clock()
        self._due = self._started + FIRST_SECONDS

    def begin(self) -> None:
        """Start the clock again at the first call, so that loading an engine does not enter the time left."""
        if not self._begun:
            self._begun = True
            self._set_off()

    def add(self, count: int = 1) -> None:
        """Count finished parts; print a line if one is due and parts are left."""
        self._done += count
        now = self._clock()
        left = self._total - self._done
        if now < self._due or left <= 0:
            return
        self._due = now + SECONDS
        seconds = round((now - self._started) * left / self._done)
        rest = f"{seconds} s" if seconds < LONGEST_IN_SECONDS else f"{round(seconds / 60)} minutes"
        foretold = f", about {rest} left" if self._done >= ENOUGH * self._total else ""
        self._say(f"{self._step}: {self._done} of {self._total}{foretold}")


@contextlib.contextmanager
def telling(
    step: str, say: Callable[[str], None], first: float = FIRST_SECONDS, then: float = SECONDS
) -> Iterator[None]:
    """Report to `say` now and then how long the block has taken, for steps without parts to count.

    A thread of its own reports."""
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        pause = first
        while not ended.wait(pause):
            say(f"{step}: {round(time.monotonic() - started)} s so far")
            pause = then

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
