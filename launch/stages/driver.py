"""A stage before the loop, from its config to its summary: data and model are prepared, ranks train, the best is kept.

One driver for all stages; what they learn is the ranks' business (`learner/training/stage_worker.py`). The order
matters:
everything that a user can get wrong is checked before an actor starts, and everything that was started is ended
whatever happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from actors.errors import RunError, UsageError
from launch.cluster import wiring
from launch.output.board import clock
from launch.output.metrics import MetricsWriter
from launch.output.run_directory import RunDirectory
from launch.output.summary import package_versions
from launch.stages.config import SftRunConfig, StageRunConfig
from launch.train import INTERRUPTED, check_same_run
from learner.backend import checkpoints
from learner.tensors.examples import TRAIN, VALIDATION

REPORT_UPDATES = 10
"""Optimizer steps that the ranks take at a time; between them the driver listens."""
SHOWN_SKIPS = 5


@dataclass(frozen=True)
class Prepared:
    """A stage's model and data on disk."""

    model_dir: Path
    train: int
    """Training examples."""
    validation: int
    """Held-out examples."""
    skipped: list[str]
    """Malformed rows that were left out."""


class Ranks(Protocol):
    """All ranks of a stage as one: `learner.training.stage_worker.StageWorker` says what they can do."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Enters `method` on every rank; rank 0 answers."""


@contextlib.contextmanager
def ranks_on_ray(config: StageRunConfig, model_dir: Path, directory: Path, total_updates: int) -> Iterator[Ranks]:
    """Joins or starts Ray, and starts the ranks in it. They end with it."""
    with wiring.ray_session(config.cluster):
        wiring.check_stage_resources(config.learner)
        yield wiring.start_stage(config, model_dir, directory, total_updates)


StartRanks = Callable[[Any, Path, Path, int], contextlib.AbstractContextManager[Ranks]]


def run_sft(config: SftRunConfig, *, resume: bool = False) -> int:
    """Fine-tunes on demonstrations. Returns the exit code: 0 at the end, 130 after an interrupt that was checkpointed.

    Raises:
        UsageError: wrong paths, data or settings; nothing was trained.
        RunError: the run failed; the last checkpoint stands.
    """
    from launch.stages.sft import prepare_sft

    return StageRun(config, prepare_sft, resume=resume).run()


@contextlib.contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """While a stage is prepared: a disk that refuses is a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error}; choose another directory with --output DIR") from error


@dataclass(slots=True)
class State:
    """How far a stage is; what a checkpoint keeps of the driver."""

    updates: int = 0
    loss: float | None = None
    """Of the newest step that was taken."""
    tokens: int = 0
    held_out_at_start: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    """Of the newest evaluation; empty where nothing is held out."""
    best_held_out_loss: float | None = None
    best_update: int | None = None
    waited: int = 0
    """Evaluations since the best one."""


class StageRun:
    """One run of a stage. `prepare` checks, reads and writes what the ranks will load, below the run's directory;
    `start` starts the ranks and ends them."""

    def __init__(
        self,
        config: StageRunConfig,
        prepare: Callable[[Any, Path], Prepared],
        *,
        resume: bool = False,
        start: StartRanks = ranks_on_ray,
    ) -> None:
        self.config, self._prepare, self._resume, self._start = config, prepare, resume, start
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._state = State()
        self._figures: dict[str, Any] = {}
        self._stop = False

    def run(self) -> int:
        run = RunDirectory.open(self.config, resume=self._resume)
        checkpoint = checkpoints.latest(run.checkpoints) if self._resume else None
        saved = checkpoints.read_state(checkpoint) if checkpoint else None
        with contextlib.ExitStack() as stack:
            run.begin(self.config)
            stack.callback(run.close)
            prepared = self._prepared(run, from_the_start=saved is None)
            self._tell(prepared)
            fixed = self._fixed(run.path / "data")
            if saved is not None:
                check_same_run(saved["fixed"], fixed, checkpoint)
                self._state = State(**saved["state"])
            total = self.config.training.updates(prepared.train)
            self._say(f"starting {self.config.learner.ranks} learner ranks")
            ranks = stack.enter_context(self._start(self.config, prepared.model_dir, run.path, total))
            # After Ray, which sets handlers of its own.
            stack.enter_context(self._stopping_on_signals())
            metrics = MetricsWriter(run.path, resume_from=self._state.updates)
            stack.callback(metrics.close)
            try:
                ranks.call("ready")
                if checkpoint is not None:
                    ranks.call("load", str(checkpoint))
                    self._say(f"resumed from {checkpoint} after {self._state.updates} updates")
                completed = self._train(ranks, run, metrics, total, fixed)
                ranks.call("close")
            except BaseException as error:
                status, told = "failed", str(error) or type(error).__name__
                if isinstance(error, KeyboardInterrupt):
                    status, told = "interrupted", "ended at once; the last checkpoint stands"
                with contextlib.suppress(RunError, OSError):
                    self._write_summary(run, prepared, total, status, told)
                raise
            self._write_summary(run, prepared, total, "completed" if completed else "interrupted", None)
        if not completed:
            self._say("interrupted: checkpoint written, go on with --resume")
            return INTERRUPTED
        self._say(f"{run.final} holds the model; {clock(time.monotonic() - self._started)} in all")
        return 0

    def _prepared(self, run: RunDirectory, *, from_the_start: bool) -> Prepared:
        """What the ranks will load. A fresh run that is refused leaves its directory empty, to be tried again."""
        if from_the_start:
            # What an earlier part made of other data or settings, and died of before its first checkpoint.
            shutil.rmtree(run.start, ignore_errors=True)
        try:
            prepared = self._prepare(self.config, run.path)
            self._check_patience(prepared)
        except UsageError:
            if not self._resume:
                run.clear()
            raise
        return prepared

    def _check_patience(self, prepared: Prepared) -> None:
        patience = self.config.training.patience
        if patience is not None and not prepared.validation:
            raise UsageError(
                f"training.patience {patience} waits for a better held-out loss, and none of {prepared.train} examples "
                "is held out; raise data.validation_fraction, or leave training.patience unset"
            )

    def _train(
        self, ranks: Ranks, run: RunDirectory, metrics: MetricsWriter, total: int, fixed: dict[str, Any]
    ) -> bool:
        """Whether training reached its end, by its schedule or by its patience. Either way a checkpoint is written."""
        state, training, every = self._state, self.config.training, self.config.checkpoints.every_updates
        saved = state.updates or None
        if state.updates == 0:
            state.held_out_at_start = self._evaluate(ranks, metrics, total)
        while state.updates < total and not self._out_of_patience():
            if self._stop:
                break
            due = [REPORT_UPDATES, total - state.updates]
            due += [step - state.updates % step for step in (training.evaluate_every, every) if step]
            for stats in ranks.call("advance", min(due)):
                values = {"loss": stats.loss, "grad_norm": stats.grad_norm, "lr": stats.lr, "seconds": stats.seconds}
                counts = {"tokens": stats.tokens, "padded_tokens": stats.padded_tokens, "skipped": stats.skipped}
                metrics.write(stats.update, values | counts | stats.metrics)
                state.updates, state.loss = stats.update, state.loss if stats.skipped else stats.loss
                state.tokens += stats.tokens
            if state.updates == total or (training.evaluate_every and state.updates % training.evaluate_every == 0):
                self._judge(self._evaluate(ranks, metrics, total), ranks, run)
            if every and state.updates % every == 0:
                self._save(ranks, run, fixed)
                saved = state.updates
        completed = state.updates == total or self._out_of_patience()
        if state.updates != saved:
            self._save(ranks, run, fixed)
        if completed and (training.patience is None or state.best_update is None):
            ranks.call("save_pretrained", str(run.final))
        if completed:
            self._figures = ranks.call("finish", str(run.final))
        return completed

    def _evaluate(self, ranks: Ranks, metrics: MetricsWriter, total: int) -> dict[str, float]:
        """Held-out loss and metrics; without held-out examples none."""
        values = ranks.call("evaluate")
        held_out = {key: value for key, value in values.items() if key not in ("tokens", "padded_tokens")}
        state = self._state
        state.held_out = held_out
        if held_out and state.updates:
            metrics.write(state.updates, {f"held_out_{key}": value for key, value in held_out.items()})
        told = "".join(f" | held-out {key} {value:.4f}" for key, value in held_out.items())
        loss = "" if state.loss is None else f" | loss {state.loss:.4f}"
        self._say(f"update {state.updates}/{total}{loss}{told} | {clock(time.monotonic() - self._started)}")
        return held_out

    def _judge(self, held_out: dict[str, float], ranks: Ranks, run: RunDirectory) -> None:
        """Keeps the model where it is the best so far, or counts how long none was better."""
        state = self._state
        if not held_out:
            return
        best = math.inf if state.best_held_out_loss is None else state.best_held_out_loss
        if held_out["loss"] < best:
            state.best_held_out_loss, state.best_update, state.waited = held_out["loss"], state.updates, 0
            if self.config.training.patience is not None:
                ranks.call("save_pretrained", str(run.final))
        else:
            state.waited += 1

    def _out_of_patience(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self._state.waited >= patience

    def _save(self, ranks: Ranks, run: RunDirectory, fixed: dict[str, Any]) -> None:
        tag = f"update-{self._state.updates:07d}"
        stage = checkpoints.begin(run.checkpoints, tag)
        try:
            ranks.call("save", str(stage))
            checkpoints.write_state(stage, {"fixed": fixed, "state": asdict(self._state)})
        except BaseException:
            checkpoints.discard(stage)
            raise
        checkpoints.commit(run.checkpoints, tag, self.config.checkpoints.keep)

    def _fixed(self, data: Path) -> dict[str, Any]:
        """What a resumed run must share with the saved one: order and number of steps depend on it."""
        digest = hashlib.sha256()
        for name in (TRAIN, VALIDATION):
            digest.update((data / name).read_bytes())
        return {"the examples": digest.hexdigest(), **self.config.fixed}

    def _write_summary(self, run: RunDirectory, prepared: Prepared, total: int, status: str, error: str | None) -> None:
        told = asdict(self._state)
        for name in ("held_out_at_start", "held_out"):
            # JSON has no NaN and no infinity.
            told[name] = {key: value if math.isfinite(value) else None for key, value in told[name].items()}
        summary = {
            "status": status,
            "error": error,
            "name": self.config.name,
            "output": str(run.path),
            "total_updates": total,
            "train_examples": prepared.train,
            "held_out_examples": prepared.validation,
            "skipped_rows": len(prepared.skipped),
            **told,
            **({"model_card": self._figures} if self._figures else {}),
            "wall_seconds": time.monotonic() - self._started,
            "versions": package_versions(),
        }
        temporary = run.summary.with_suffix(".tmp")
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, run.summary)

    def _tell(self, prepared: Prepared) -> None:
        for line in prepared.skipped[:SHOWN_SKIPS]:
            self._say(f"skipped {line}")
        skipped = f", {len(prepared.skipped)} malformed rows skipped" if prepared.skipped else ""
        self._say(f"{prepared.train} training examples, {prepared.validation} held out{skipped}")

    def _say(self, text: str) -> None:
        self._console.print(f"offbeat: {text}", markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the steps that are under way; the second ends it at once."""

        def stop(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self._say("interrupted: the run ends after the steps under way; a second time ends it at once")

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
