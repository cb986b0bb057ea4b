"""What the garbage collector need not look at: modules, and tests, which stay until the end of the process.

A full collection takes as long as there are objects to look at: a second, when vLLM, DeepSpeed and all tests are there.
Both engines ask for several at each start and end.
"""

from __future__ import annotations

import gc
import sys

_unfreeze = gc.unfreeze
MANY = 50
"""Modules that are worth a collection."""
_modules = _frozen = 0
"""Modules and exempt objects at the last `spare`."""


def keep_exempt() -> None:
    """Let no engine that ends put everything back among what is looked at; `collect` does, once a file."""
    gc.unfreeze = _nothing


def _nothing() -> None: ...


def spare() -> None:
    """Exempt all that is alive from collections. An engine would stay for ever: none may be there."""
    global _modules, _frozen
    gc.freeze()
    _modules, _frozen = len(sys.modules), gc.get_freeze_count()


def collect() -> None:
    """Collect everything, with what engines exempted at their starts: themselves, and those before them."""
    if gc.get_freeze_count() <= _frozen:  # less: what nobody refers to ends without a collection
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
