"""What the garbage collector need not look at: modules, and tests, which stay until the end of the process.

A full collection takes as long as there are objects to look at: a second, when vLLM, DeepSpeed and all tests are there.
Both engines ask for several at each start and end.
"""

from __future__ import annotations

import gc
import sys

_freeze, _unfreeze = gc.freeze, gc.unfreeze
MANY = 50
"""Modules that are worth a collection."""
_modules = 0
"""Modules at the last `spare`."""
_engine_was_here = False
"""Whether an engine exempted anything since. To count what is exempt takes a tenth of a second."""


def keep_exempt() -> None:
    """Let no engine that ends put everything back among what is looked at; `collect` does, once a file."""
    gc.freeze, gc.unfreeze = _freeze_for_engine, _nothing


def _freeze_for_engine() -> None:
    global _engine_was_here
    _engine_was_here = True
    _freeze()


def _nothing() -> None: ...


def spare() -> None:
    """Exempt all that is alive from collections. An engine would stay for ever: none may be there."""
    global _modules, _engine_was_here
    _freeze()
    _modules, _engine_was_here = len(sys.modules), False


def collect() -> None:
    """Collect everything, with what engines exempted at their starts: themselves, and those before them."""
    if not _engine_was_here:
        gc.collect()
        return
    _unfreeze()
    gc.collect()
    if not hasattr(sys, "last_traceback"):  # of a test that failed, which may hold an engine
        spare()


def spare_imports() -> None:
    """Exempt what was imported since, if that is much."""
    if len(sys.modules) > _modules + MANY and not hasattr(sys, "last_traceback"):
        gc.collect()
        spare()


def look_at_all() -> None:
    _unfreeze()
