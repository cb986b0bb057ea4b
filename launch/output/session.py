"""What every verb that trains has in common: a directory, checkpoints, signals, and a summary however the run ends."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from actors.errors import OffbeatError, UsageError
from actors.files import discard
from launch.output.run_directory import RunDirectory
from launch.settings.renamed import new_key
from launch.settings.run import TrainingConfig
from learner.backend import checkpoints

SHOWN_SKIPS = 5  # malformed rows shown one by one

Status = Literal["completed", "interrupted", "failed"]


class Session:
    """One process's part of a run. Opens the run's directory without writing to it.

    Raises UsageError if the directory holds another run, or nothing to resume.
    """

    def __init__(self, config: TrainingConfig, *, resume: bool = False) -> None:
        self.started = time.monotonic()
        self.config, self.resume = config, resume
        self.directory = RunDirectory.open(config, resume=resume)
        self.checkpoint = checkpoints.latest(self.directory.checkpoints) if resume else None
        self.state: dict[str, Any] = checkpoints.read_state(self.checkpoint) if self.checkpoint else {}
        """What the driver saved with `checkpoint`; empty for a new run."""

    @contextlib.contextmanager
    def running(self) -> Iterator[RunDirectory]:
        """Hold the run's directory for this process; write its resolved config."""
        self.directory.begin(self.config)
        try:
            yield self.directory
        finally:
            self.directory.close()

    def check_same(self, fixed: Mapping[str, Any]) -> None:
        """Raise UsageError if a fixed setting changed since the checkpoint. See `check_same_run`."""
        if self.state:
            check_same_run(self.state["fixed"], fixed, self.checkpoint)

    async def save(self, updates: int, state: Mapping[str, Any], write: Callable[[Path], Awaitable[None]]) -> None:
        """Make a checkpoint after `updates` updates of what `write` puts into its directory, and of `state`."""
        root, tag = self.directory.checkpoints, stage_name(updates)
        stage = checkpoints.begin(root, tag)
        try:
            await write(stage)
            checkpoints.write_state(stage, dict(state))
        except BaseException:
            discard(stage)
            raise
        checkpoints.commit(root, tag, self.config.checkpoints.keep)

    def drive(self, main: Coroutine[Any, Any, int], write_summary: Callable[[Status, str | None], None]) -> int:
        """Run `main` in an event loop. Write the summary of a run that `main` does not end; a full disk must not hide
        what ended it. Raises KeyboardInterrupt after a second interrupt."""
        try:
            return asyncio.run(main)
        except (KeyboardInterrupt, asyncio.CancelledError):
            with contextlib.suppress(OffbeatError, OSError):
                write_summary("interrupted", "ended at once; the last checkpoint stands")
            raise KeyboardInterrupt from None
        except BaseException as error:
            with contextlib.suppress(OffbeatError, OSError):
                write_summary("failed", str(error) or type(error).__name__)
            raise


def check_same_run(saved: Mapping[str, Any], given: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Raise UsageError that names every fixed setting whose value differs from the checkpoint's.

    Settings that the checkpoint does not name are not compared, and evaluation may be turned off.
    """
    saved = {new_key(name) or name: value for name, value in saved.items()}
    changed = [
        f"{name} (was {saved[name]}, is {value})"
        for name, value in given.items()
        if name in saved and saved[name] != value and (name, value) != ("evaluation.prompts", 0)
    ]
    if changed:
        raise UsageError(
            f"cannot resume from {checkpoint}: changed since it was saved: {'; '.join(changed)}; resume with the same, "
            "or start a new run with another --output"
        )


def stage_name(updates: int) -> str:
    """Return the name of the checkpoint after `updates` updates; names sort in order of time."""
    return f"update-{updates:07d}"


def tell_skipped(skipped: Sequence[str], say: Callable[[str], None]) -> None:
    """Show the first malformed rows."""
    for line in skipped[:SHOWN_SKIPS]:
        say(f"skipped {line}")


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that everything started is ended too."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def stopping_on_signals(stop: Callable[[], str | None], say: Callable[[str], None]) -> Iterator[None]:
    """Within it the first Ctrl-C or SIGTERM calls `stop`, and the second cancels the current task.

    `stop` returns what to tell the user, or None if there is nothing to save: then the first one cancels too.
    """
    running, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopped = False

    def handle() -> None:
        nonlocal stopped
        told = None if stopped else stop()
        stopped = True
        if told is None:
            task.cancel()
        else:
            say(f"interrupted: {told}; a second time ends it at once")

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        running.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            running.remove_signal_handler(number)
            signal.signal(number, handler)
