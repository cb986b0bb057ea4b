"""A stage before the loop, from its config to its summary: prepare data and model, train, keep the best model.

One driver for all stages; `learner/stages` says what they learn. The order matters: everything that a user can get
wrong is checked before an actor starts, and everything that was started is ended whatever happens.
"""

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.data.text import save_template
from actors.errors import INTERRUPTED, UsageError, writing
from actors.files import atomic_write, discard
from actors.foreign.text import many
from launch.cluster import wiring
from launch.cluster.placement import counted
from launch.cluster.watchdog import Watchdog
from launch.output.board import clock
from launch.output.process import interrupts
from launch.output.session import Resume, Session, Status, board_of, stopping_on_signals, tell_skipped
from launch.output.summary import package_versions
from launch.run.divergence import DivergenceGuard, DivergenceWatch, figures_of
from launch.run.pools.countdown import telling
from launch.run.preflight import MANY_EPOCHS, model_content
from launch.run.protocols import StagePort
from launch.settings.loading import with_recorded_defaults
from launch.stages.config import PreferenceRunConfig, StageRunConfig
from launch.stages.prepared import Prepared
from launch.tracking.tracked import TrackedMetrics, require_trackers
from learner.backend import manifest
from learner.backend.deepspeed_config import schedule_notes
from learner.stages.config import VALIDATION_SPLIT, PassesConfig
from learner.tensors.examples import TRAIN, VALIDATION

REPORT_UPDATES = 10
"""Optimizer steps that the ranks take at a time; between them the driver listens."""


@contextlib.contextmanager
def ranks_on_ray(config: StageRunConfig, model_dir: Path, directory: Path, total_updates: int) -> Iterator[StagePort]:
    """Join or start Ray, and start the ranks in it. They end with it."""
    with wiring.ray_session(config.cluster):
        wiring.check_stage_resources(config.learner)
        yield wiring.start_stage(config, model_dir, directory, total_updates)


def repetition(training: PassesConfig, examples: int) -> list[str]:
    """Say if one update, or all of them, go over the examples more often than is usual."""
    notes, batch, epochs = [], training.batch_size, training.epochs
    if batch > examples:
        notes.append(
            f"training.batch_size {batch:,} exceeds the {many(examples, 'training example')}: an update trains on an "
            f"example up to {many(-(-batch // examples), 'time')}; lower it, or add examples"
        )
    if epochs > MANY_EPOCHS and training.patience is None:
        notes.append(
            f"training.epochs {epochs:,g} are {many(training.updates(examples), 'update')} over "
            f"{many(examples, 'example')}: the model may learn these by heart; lower it, or set training.patience"
        )
    return notes


StartRanks = Callable[[Any, Path, Path, int], contextlib.AbstractContextManager[StagePort]]


@dataclass(slots=True)
class State:
    """Progress of a stage, as a checkpoint stores it."""

    updates: int = 0
    loss: float | None = None  # of the newest step that was taken
    tokens: int = 0
    held_out_at_start: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    """Figures of the newest evaluation; empty if nothing is held out."""
    best_held_out_loss: float | None = None
    best_update: int | None = None
    waited: int = 0  # evaluations since the best one


class StageRun:
    """One run of a stage. `prepare` checks, reads and writes what the ranks load, below the run's directory; `start`
    starts the ranks and ends them."""

    def __init__(
        self,
        config: StageRunConfig,
        prepare: Callable[[Any, Path], Prepared],
        *,
        resume: Resume = False,
        start: StartRanks = ranks_on_ray,
    ) -> None:
        require_trackers(config.tracking)
        config = with_recorded_defaults(config) if resume else config
        self.config, self._prepare, self._start = config, prepare, start
        self._session = Session(config, resume=resume)
        if self._session.state and VALIDATION_SPLIT not in self._session.state["fixed"]:
            # The run is older than the setting: it goes on with the share that it held out.
            self.config = config = config.model_copy(
                update={"data": config.data.model_copy(update={"validation_split": "none"})}
            )
        self._directory = self._session.directory
        self._board = board_of(config)
        self._state = State()
        self._figures: dict[str, Any] = {}
        self._divergence = DivergenceWatch(config.divergence)
        self._guard = DivergenceGuard(
            config.divergence.action, self._directory.checkpoints, self._directory.failed_batches, self._say
        )
        self._stopped = False
        self._training = False
        """True once steps are taken, after the first evaluation."""
        self._prepared: Prepared
        self._fixed: dict[str, Any]
        self._total = 0
        self._ranks: StagePort
        self._metrics: TrackedMetrics

    def run(self) -> int:
        """Train to the end of schedule or patience. Returns the exit code: 0, or 130 after an interrupt."""
        session, directory = self._session, self._directory
        with contextlib.ExitStack() as stack:
            stack.enter_context(session.running())
            self._prepared = prepared = self._prepare_files()
            interrupts.check()
            session.keep(directory.start)
            for note in [*prepared.notes, *session.notes]:
                self._say(note)
            tell_skipped(prepared.skipped, self._say)
            skipped = f", {many(len(prepared.skipped), 'malformed row')} skipped" if prepared.skipped else ""
            self._say(f"{many(prepared.train, 'training example')}, {prepared.validation} held out{skipped}")
            if not prepared.validation:
                self._say("nothing is held out: no held-out loss; raise data.validation_fraction")
            for note in repetition(self.config.training, prepared.train):
                self._say(note)
            self._fixed = self._fixed_settings(directory.path / "data")
            session.check_same(self._fixed)
            if session.state:
                self._state = State(**session.state["state"])
            self._total = self.config.training.updates(prepared.train)
            self._say(f"starting {counted(['learner rank'] * self.config.learner.ranks)}")
            self._ranks = stack.enter_context(self._start(self.config, prepared.model_dir, directory.path, self._total))
            self._metrics = TrackedMetrics(session, self._state.updates, self._say)
            stack.callback(self._metrics.close)
            for note in schedule_notes(self.config.learner.optimizer, self._total, self._metrics.last):
                self._say(note)
            return session.drive(self._drive(), self._write_summary)

    async def _drive(self) -> int:
        with stopping_on_signals(self._stop, self._say):
            await self._ranks.ready()
            if self._session.checkpoint is not None:
                await self._ranks.load(self._session.checkpoint)
                self._say(f"resumed from {self._session.checkpoint} after {many(self._state.updates, 'update')}")
            watchdog = Watchdog(self._ranks.each(), self.config.watchdog, self._say, self._directory.record_hang)
            completed = await watchdog.guard(self._train())
            await self._ranks.close()
        interrupts.settle()
        self._write_summary("completed" if completed else "interrupted", None)
        if not completed:
            return INTERRUPTED
        self._say(f"{self._directory.final} holds the model; {self._elapsed()} in all")
        return 0

    def _stop(self) -> str | None:
        """Ask for the end after the steps under way; None while there is nothing to save."""
        self._stopped = True
        if not self._training:
            return None
        if self._state.updates == self._total:
            return "all updates are done, evaluating and saving"
        return "the run ends after the steps under way"

    def _prepare_files(self) -> Prepared:
        """Write what the ranks load. A new run that is refused leaves nothing, to be tried again."""
        if not self._session.state:
            # Left by an earlier part with other data or settings, which died before its first checkpoint.
            shutil.rmtree(self._directory.start, ignore_errors=True)
        try:
            with telling("preparing model and data", self._say):
                prepared = self._prepare(self.config, self._directory.path)
            self._check_held_out(prepared)
        except UsageError:
            if not self._session.resume:
                self._directory.withdraw()
            raise
        return prepared

    def _check_held_out(self, prepared: Prepared) -> None:
        """Raise UsageError if what needs held-out examples has none; a resumed run calibrates what it can."""
        patience = self.config.training.patience
        calibrates = isinstance(self.config, PreferenceRunConfig) and self.config.preference.calibrate
        if calibrates and not prepared.validation and not self._session.resume:
            raise UsageError(
                f"preference.calibrate needs held-out pairs, and none of {prepared.train} is held out; raise "
                "data.validation_fraction, or set preference.calibrate to false: its model card then has no held-out "
                "figures"
            )
        if patience is not None and not prepared.validation:
            raise UsageError(
                f"training.patience {patience} waits for a better held-out loss, and none of {prepared.train} examples "
                "is held out; raise data.validation_fraction, or leave training.patience unset"
            )

    async def _train(self) -> bool:
        """Train; return whether schedule or patience ended it. A checkpoint is written either way."""
        state, training, every = self._state, self.config.training, self.config.checkpoints.every_updates
        saved = state.updates or None
        if state.updates == 0:
            state.held_out_at_start = await self._evaluate()
        self._training = True
        while state.updates < self._total and not self._out_of_patience() and not self._stopped:
            due = [REPORT_UPDATES, self._total - state.updates]
            due += [step - state.updates % step for step in (training.evaluate_every, every) if step]
            await self._advance(min(due))
            scheduled = training.evaluate_every and state.updates % training.evaluate_every == 0
            if state.updates == self._total or scheduled:
                await self._keep_if_best(await self._evaluate())
            if every and state.updates % every == 0:
                await self._save()
                saved = state.updates
        completed = state.updates == self._total or self._out_of_patience()
        if state.updates != saved:
            await self._save()
        if completed and (training.patience is None or state.best_update is None):
            await self._save_final()
        if completed:
            await self._finish()
        return completed

    async def _advance(self, updates: int) -> None:
        state, reports = self._state, await self._ranks.advance(updates)
        self._directory.require()
        for stats in reports:
            self._divergence.update(stats.update, figures_of(stats))
            values = {"loss": stats.loss, "grad_norm": stats.grad_norm, "lr": stats.lr, "seconds": stats.seconds}
            counts = {"tokens": stats.tokens, "padded_tokens": stats.padded_tokens, "skipped": stats.skipped}
            self._metrics.write(stats.update, values | counts | stats.metrics)
            state.updates, state.loss = stats.update, state.loss if stats.skipped else stats.loss
            state.tokens += stats.tokens
        if (departure := self._divergence.take()) is not None:
            await self._guard.heed(departure, self._save)

    async def _evaluate(self) -> dict[str, float]:
        """Measure held-out loss and metrics; none without held-out examples."""
        values = await self._ranks.evaluate()
        held_out = {key: value for key, value in values.items() if key not in ("tokens", "padded_tokens")}
        state = self._state
        state.held_out = held_out
        if held_out and state.updates:
            self._metrics.write(state.updates, {f"held_out_{key}": value for key, value in held_out.items()})
        measured = "".join(f" | held-out {key} {value:.4f}" for key, value in held_out.items())
        loss = "" if state.loss is None else f" | loss {state.loss:.4f}"
        self._say(f"update {state.updates}/{self._total}{loss}{measured} | {self._elapsed()}")
        return held_out

    async def _keep_if_best(self, held_out: dict[str, float]) -> None:
        """Keep the model if it is the best so far, else count how long none was better."""
        state = self._state
        if not held_out:
            return
        best = math.inf if state.best_held_out_loss is None else state.best_held_out_loss
        if held_out["loss"] < best:
            state.best_held_out_loss, state.best_update, state.waited = held_out["loss"], state.updates, 0
            if self.config.training.patience is not None:
                await self._save_final()
        else:
            state.waited += 1

    async def _save_final(self) -> None:
        await self._ranks.save_pretrained(self._directory.final)
        save_template(self.config.model, self._directory.final)

        self._session.seal(self._directory.final, self._state.updates)

    async def _finish(self) -> None:
        """Add to the final model what belongs beside it, and seal it again."""
        final = self._directory.final
        sealed = manifest.check(final)
        # Until it is sealed again it has no manifest, rather than one that does not fit.
        discard(final / manifest.MANIFEST)
        self._figures = await self._ranks.finish(final)
        for name, text in self._prepared.beside.items():
            with writing(final / name, "then use --resume: the model beside it is whole"):
                atomic_write(final / name, text)
        self._session.seal(final, self._state.updates if sealed is None else sealed.update)

    def _out_of_patience(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self._state.waited >= patience

    async def _save(self) -> None:
        state = {"fixed": self._fixed, "state": asdict(self._state)}
        await self._session.save(self._state.updates, state, self._ranks.save)

    def _fixed_settings(self, data: Path) -> dict[str, Any]:
        """Return what a resumed run must share with the saved one: order and number of steps depend on it."""
        digest = hashlib.sha256()
        for name in (TRAIN, VALIDATION):
            digest.update((data / name).read_bytes())
        fixed = {"the examples": digest.hexdigest(), "the model": manifest.content(self._prepared.model_dir)}
        if reference := self.config.fixed.get("reference"):
            fixed["the reference"] = model_content(reference)
        return fixed | self.config.fixed

    def _write_summary(self, status: Status, error: str | None) -> None:
        state, prepared = asdict(self._state), self._prepared
        for name in ("held_out_at_start", "held_out"):
            # JSON has no NaN and no infinity.
            state[name] = {key: value if math.isfinite(value) else None for key, value in state[name].items()}
        summary = {
            "status": status,
            "error": error,
            "name": self.config.name,
            "output": str(self._directory.path),
            "total_updates": self._total,
            "train_examples": prepared.train,
            "held_out_examples": prepared.validation,
            "skipped_rows": len(prepared.skipped),
            **state,
            **({"model_card": self._figures} if self._figures else {}),
            "wall_seconds": time.monotonic() - self._session.started,
            "versions": package_versions(),
        }
        with writing(self._directory.summary, "then use --resume"):
            atomic_write(self._directory.summary, json.dumps(summary, indent=2) + "\n", durable=True)
        self._metrics.end(status, summary)

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self._session.started)

    def _say(self, text: str) -> None:
        self._board.message(text)
