"""Imports of large packages: what they define is never searched for garbage."""

import gc

from actors.foreign.imports import gc_paused


def test_what_an_import_defines_is_kept_from_the_collector_which_goes_on_as_before():
    before = gc.get_freeze_count()
    with gc_paused():
        assert not gc.isenabled()
        kept = [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(each is kept for each in gc.get_objects())
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
