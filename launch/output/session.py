"""Shared by all verbs that train: a directory, checkpoints, signals, and a summary however the run ends."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from actors.errors import OffbeatError, UsageError, surroundings, writing
from actors.files import discard
from actors.foreign.documents import read_object
from actors.foreign.text import shown
from launch.output.board import Board, JsonBoard
from launch.output.process import interrupts, supervisor
from launch.output.run_directory import RunDirectory
from launch.output.summary import Summary
from launch.settings.loading import dump_config
from launch.settings.renamed import changes, new_key, new_value
from launch.settings.run import TrainingConfig
from launch.settings.yaml_text import parse_yaml, read_recorded
from learner.backend import checkpoints, manifest

SHOWN_SKIPS = 5  # malformed rows shown one by one
SHOWN_CHANGES = 8  # settings that a resume names

Status = Literal["completed", "interrupted", "failed"]
Resume = bool | str
"""True to continue from the last checkpoint; a text names another checkpoint, as for `checkpoints.to_resume`."""

_BY_CONTENT = {"model.path": "the model", "model.reference": "the reference", "reference": "the reference"}
"""Fixed settings that are paths, each with the fixed value that identifies its content."""


class Session:
    """One process's part of a run. Opens the run's directory without writing to it, and verifies what it resumes from.

    Raises UsageError if the directory holds another run, or nothing to resume, or files that are not as written.
    """

    def __init__(self, config: TrainingConfig, *, resume: Resume = False) -> None:
        self.started = time.monotonic()
        self.config, self.resume = config, bool(resume)
        self.directory = RunDirectory.open(config, resume=self.resume)
        self.checkpoint: Path | None = None
        self.notes: list[str] = []
        """Notes to print once."""
        self.state: dict[str, Any] = {}
        """The driver's state in `checkpoint`; empty for a new run."""
        self.fixed: dict[str, Any] = {}
        """Settings that a resumed run must share with this one; set by `check_same`."""
        self.result: Summary | None = None
        """Summary of a run that resumes from its newest checkpoint and has nothing left to do."""
        if resume:
            wanted = resume if isinstance(resume, str) else None
            if (self.directory.checkpoints / checkpoints.POINTER).is_file():
                board_of(config).message(f"reading the checkpoints of {self.directory.path}")
            found = checkpoints.to_resume(self.directory.checkpoints, wanted, self.directory.run_id)
            self.checkpoint, self.notes = found
            if self.checkpoint is None and self.directory.completed:
                raise UsageError(
                    f"--resume found no checkpoint in {self.directory.checkpoints}, and {self.directory.path} holds a "
                    "completed run, which a new start would replace; restore a checkpoint from a copy, or start "
                    "without --resume in another directory, with --output DIR"
                )
        if self.checkpoint is not None:
            self.state = checkpoints.read_state(self.checkpoint)
            if not isinstance(self.state.get("fixed"), dict):
                raise checkpoints.damaged(self.checkpoint, f"{checkpoints.STATE} names no settings of its run")
            check_layout(self.checkpoint, config)
            for directory in (self.directory.start, self.directory.baseline.parent):
                manifest.check(directory)
            changed = changed_settings(self.directory.config, config)
            self.notes += changed
            self.result = result_of(self.directory) if resume is True and not changed else None

    @contextlib.contextmanager
    def running(self) -> Iterator[RunDirectory]:
        """Hold the run's directory for this process; write its resolved config."""
        with interrupts.heeding():
            self.directory.begin(self.config, checkpoints.run_of(self.checkpoint) if self.checkpoint else None)
            try:
                if self.checkpoint is not None:
                    checkpoints.point_to(self.directory.checkpoints, self.checkpoint)
                with surroundings("then use --resume"):
                    yield self.directory
            finally:
                self.directory.close()

    def check_same(self, fixed: dict[str, Any]) -> None:
        """Raise UsageError if a fixed setting changed since the checkpoint. See `check_same_run`."""
        self.fixed = fixed
        if self.state:
            check_same_run(self.state["fixed"], fixed, self.checkpoint)

    async def save(self, updates: int, state: Mapping[str, Any], write: Callable[[Path], Awaitable[None]]) -> None:
        """Make a checkpoint after `updates` updates of what `write` puts into its directory, and of `state`."""
        self.directory.require()
        root, tag = self.directory.checkpoints, stage_name(updates)
        stage = checkpoints.begin(root, tag)
        try:
            await write(stage)
            checkpoints.write_state(stage, dict(state))
        except BaseException:
            with contextlib.suppress(OSError):  # the first error counts
                discard(stage)
            raise
        checkpoints.commit(root, tag, self.config.checkpoints.keep, self.directory.run_id)

    def seal(self, directory: Path, updates: int | None = None) -> None:
        """Write the manifest of a complete directory of this run, made after `updates` updates. Raises RunError."""
        self.directory.require()
        with writing(directory / manifest.MANIFEST, "then use --resume"):
            manifest.seal(directory, run=self.directory.run_id, update=updates)

    def keep(self, directory: Path) -> None:
        """Seal a directory that a resumed run reads again, unless it is; then verify it. Raises UsageError."""
        if directory.is_dir() and manifest.check(directory) is None:
            self.seal(directory)

    def drive(self, main: Coroutine[Any, Any, int], write_summary: Callable[[Status, str | None], None]) -> int:
        """Run `main` in an event loop. Write the summary of a run that `main` does not end; a full disk must not hide
        what ended it. Raises KeyboardInterrupt after a second interrupt."""
        try:
            with contextlib.closing(main):
                interrupts.check()
                code = asyncio.run(main)
            interrupts.settle()
            return code
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupts.settle()
            with contextlib.suppress(OffbeatError, OSError):
                self.directory.require()
                write_summary("interrupted", supervisor.last_words(self.directory.path))
            raise KeyboardInterrupt from None
        except BaseException as error:
            interrupts.settle()
            with contextlib.suppress(OffbeatError, OSError):
                self.directory.require()
                write_summary("failed", shown(error, lines=True) or type(error).__name__)
            raise


def board_of(config: TrainingConfig) -> Board:
    """Return where messages of the run in `config.directory` go, in the form of `log.format`."""
    if config.log.format == "text":
        return Board()
    directory = RunDirectory(config.directory)
    return JsonBoard(lambda: (config.name, directory.run_id))


def check_same_run(saved: Mapping[str, Any], given: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Raise UsageError that names every fixed setting whose value differs from the checkpoint's.

    Settings that the checkpoint does not name are not compared, nor is the path of a model whose content is known to
    both; evaluation may be turned off.
    """
    keys = {name: new_key(name) or name for name in saved}
    saved = {keys[name]: new_value(keys[name], value) for name, value in saved.items()}
    changed = [
        f"{key} (was {was}, is {now})"
        for name, value in given.items()
        if name in saved and saved[name] != value and (name, value) != ("evaluation.prompts", 0)
        if _BY_CONTENT.get(name) not in saved.keys() & given.keys()
        for key, was, now in _differences(name, saved[name], value)
    ]
    if changed:
        raise UsageError(
            f"cannot resume from {checkpoint}: changed since it was saved: {'; '.join(changed)}; resume with the same, "
            "or start a new run with another --output"
        )


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting at or below `name` that differs, with both values; one of a section may be unset."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in {**was, **now}:
            before, after = was.get(key, "unset"), now.get(key, "unset")
            if before != after:
                yield from _differences(f"{name}.{key}", before, after)
    else:
        yield name, was, now


def check_layout(checkpoint: Path, config: TrainingConfig) -> None:
    """Raise UsageError if the engine's state was written with settings that no rank of this run could read."""
    written, learner = checkpoints.layout_of(checkpoint), getattr(config, "learner", None)
    if learner is None:
        return
    given = {"learner.zero_stage": learner.zero_stage, "learner.dtype": learner.dtype}
    saved = {key: written.get(key.partition(".")[2], value) for key, value in given.items()}
    check_same_run(saved, given, checkpoint)


def changed_settings(recorded: Path, config: TrainingConfig) -> list[str]:
    """Return a note on the settings that differ from those that a resumed run has recorded; empty if none does."""
    changed = list(changes(read_recorded(recorded), parse_yaml(dump_config(config)), type(config)))
    more = f"; and {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else ""
    return [f"changed since the run was last started: {'; '.join(changed[:SHOWN_CHANGES])}{more}"] if changed else []


def result_of(run: RunDirectory) -> Summary | None:
    """Return the summary of a run that made and evaluated all its updates, if its final model stands; else None."""
    with contextlib.suppress(UsageError, ValueError):
        wanted, summary = read_recorded(run.config).get("updates"), Summary.model_validate(read_object(run.summary))
        if run.completed and wanted == summary.updates and manifest.check(run.final) is not None:
            return summary
    return None


def stage_name(updates: int) -> str:
    """Return the name of the checkpoint after `updates` updates; names sort in order of time."""
    return f"update-{updates:07d}"


def tell_skipped(skipped: Sequence[str], say: Callable[[str], None]) -> None:
    """Show the first malformed rows."""
    for line in skipped[:SHOWN_SKIPS]:
        say(f"skipped {line}")


@contextlib.contextmanager
def stopping_on_signals(stop: Callable[[], str | None], say: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` at the first signal; cancel this task at a second one, as `interrupts.Requests` counts.

    `stop` returns a text for the user, or None if there is nothing to save: then the first signal cancels too.
    """
    running, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    requests = interrupts.Requests()

    def handle(number: int) -> None:
        asked = requests.hear(number, time.monotonic())
        told = stop() if asked in ("stop", "repeat") else None
        if told is not None:
            say(f"interrupted: {told}; a second time ends it at once")
        elif asked is not None:
            task.cancel()

    with interrupts.keeping():
        heard = interrupts.heard()
        for number in heard:
            running.add_signal_handler(number, handle, number)
        try:
            interrupts.check()  # one before, whose exception was lost in a callback
            yield
        finally:
            for number in heard:
                running.remove_signal_handler(number)
