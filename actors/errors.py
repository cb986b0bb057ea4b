"""Errors that a user can cause or must hear of. Each says what was given, what is allowed and what to do next."""

from __future__ import annotations


class OffbeatError(Exception):
    """Base of Offbeat's own errors. A run that ends with one exits with code 1 and its message, no traceback."""

    exit_code = 1


class UsageError(OffbeatError):
    """The request itself is wrong: configuration, paths, data. Exit code 2, before anything was started."""

    exit_code = 2


class RunError(OffbeatError):
    """The run could not go on: an actor failed for good, a device is full, training diverged. Exit code 1."""


class WeightMismatchError(RunError):
    """A publication does not hold what its manifest says, or an engine does not compute what the learner computes."""
