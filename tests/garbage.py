"""What the garbage collector need not look at: modules, and tests, which stay until the end of the process.

A full collection takes as long as there are objects to look at: a second, when vLLM, DeepSpeed and all tests are there.
Both engines ask for several at each start and end.
"""

from __future__ import annotations

import gc
import sys

freeze, _unfreeze = gc.freeze, gc.unfreeze
MANY = 50
"""Modules that are worth a collection."""
_seen = 0


def keep_to_this_file() -> None:
    """Leave it to `spare` what is exempt: an engine that ends would put everything back among what is looked at."""
    gc.freeze = gc.unfreeze = _nothing


def _nothing() -> None: ...


def spare() -> None:
    """Exempt all that is alive from collections. An engine would stay for ever: none may be there."""
    global _seen
    freeze()
    _seen = len(sys.modules)


def spare_imports() -> None:
    """As `spare`, if many modules came since. A test that failed may hold an engine by its traceback."""
    if len(sys.modules) > _seen + MANY and not hasattr(sys, "last_traceback"):
        gc.collect()
        spare()


def look_at_all() -> None:
    _unfreeze()
