"""One training run from its config to its summary: check, wire, train, evaluate, save, clean up.

The order matters: everything that a user can get wrong is checked before an actor starts, and everything that was
started is ended whatever happens.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import pyarrow

from actors.data.prompts import PromptSource
from actors.data.text import save_template
from actors.errors import INTERRUPTED, RunError, UsageError, writing
from actors.files import atomic_write
from actors.foreign.text import many
from actors.records import Group
from actors.replay_buffer.buffer import Batch, ReplayBuffer, group_from_dict, group_to_dict
from launch.cluster import wiring
from launch.cluster.placement import address_to_join, counted
from launch.cluster.watchdog import Watchdog
from launch.doctor.checkup import fatal_checks
from launch.output.board import Board
from launch.output.group_table import BUFFER_FILE, read_buffer, write_buffer
from launch.output.journal import Journal
from launch.output.metrics import numbers
from launch.output.process import interrupts
from launch.output.reporter import Reporter
from launch.output.run_directory import SharedMemory
from launch.output.samples import SampleLog, write_before_and_after
from launch.output.session import Resume, Session, Status, board_of, stopping_on_signals, tell_skipped
from launch.output.summary import Summary
from launch.run.divergence import DivergedError, DivergenceGuard
from launch.run.evaluation import EvaluationSet
from launch.run.loop import LoopEvents, TrainingLoop
from launch.run.plugins import plugin_of
from launch.run.pools.judge_pool import JudgePool
from launch.run.pools.reference_pool import JudgeBesideReference, ReferencePool
from launch.run.pools.waiting import until_ready
from launch.run.preflight import (
    check_model,
    check_prompts,
    check_restored,
    check_tokenizer,
    fixed_settings,
    meet_judges,
    repetition,
    slow_anchor,
)
from launch.run.progress import Progress
from launch.run.protocols import RunPlugin
from launch.run.staleness_limit import announce
from launch.settings.loading import with_recorded_defaults
from launch.settings.run import RunConfig
from launch.tracking.tracked import TrackedMetrics, require_trackers
from learner.backend.deepspeed_config import schedule_notes

CANARY_CANDIDATES = 32
"""Prompts of which the shortest is scored after every weight sync."""


def run_training(config: RunConfig, *, resume: Resume = False) -> int:
    """Run `config` to its end, or on from a checkpoint; go back and on again if it diverges and is to.

    Returns:
        The exit code: 0 when all updates are done, 130 after an interrupt that was checkpointed.

    Raises UsageError before training if paths, data or settings are wrong; RunError if the run fails, whose last
    checkpoint is whole.
    """
    for left in reversed(range(config.divergence.max_rollbacks + 1)):
        try:
            return _run(config, resume=resume)
        except DivergedError as error:
            if not left:
                raise
            # The whole run is begun again: a checkpoint is where ledger, weights and journal are known to agree.
            resume = True
            with board_of(config) as board:
                board.message(f"warning: {error}")
                most = config.divergence.max_rollbacks
                board.message(f"going back: rollback {most - left + 1} of {most}")
    raise AssertionError("unreachable: the last part returns or raises")


def _run(config: RunConfig, *, resume: Resume) -> int:
    require_trackers(config.tracking)
    plugin = plugin_of(config)
    config = plugin.resolve(with_recorded_defaults(config) if resume else config)
    tokenizer = plugin.tokenizer(config)
    prompts = PromptSource(config.prompts, tokenizer)
    notes = [*check_model(config, plugin), *check_tokenizer(config, tokenizer), *check_prompts(config, prompts)]
    notes += [*repetition(config, prompts), *slow_anchor(config)]
    session = Session(config, resume=resume)
    session.check_same(fixed_settings(config, prompts, plugin))
    if session.result is not None:
        return _show_again(config, session.result)
    buffer = ReplayBuffer(config.replay, prompts, config.updates)
    if session.checkpoint is not None:
        _restore(config, buffer, session.state["buffer"], session.checkpoint, prompts)
    check_machine(config)
    notes += session.notes
    notes += meet_judges(config, prompts, tokenizer, elsewhere=address_to_join(config.cluster) is not None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(session.running())
        board = stack.enter_context(board_of(config))
        tell_skipped(prompts.skipped, board.message)
        for note in notes:
            board.message(note)
        if prompts.skipped:
            board.message(f"{many(len(prompts.skipped), 'malformed row')} skipped, {many(len(prompts), 'prompt')} left")
        shared_memory = SharedMemory(config.directory)
        stack.callback(shared_memory.close)
        for path in shared_memory.planted:
            board.message(f"{path} has the name of a run's folder, and it or its lock is none; it is left alone")
        address = address_to_join(config.cluster)
        if address is None:
            shared_memory.require(config.cluster.object_store_mib << 20, what="Ray's object store")
        interrupts.check()
        board.message("starting Ray" if address is None else f"joining Ray at {address}")
        stack.enter_context(wiring.ray_session(config.cluster))
        wiring.check_resources(config)
        run = TrainingRun(config, session, plugin, prompts, buffer, board)
        stack.callback(run.metrics.close)
        return run.run(shared_memory.path)


def _show_again(config: RunConfig, result: Summary) -> int:
    """Show the result of a run that has nothing left to do: another evaluation would be another draw."""
    with board_of(config) as board:
        result.render(board.console)
        board.message(f"all {many(config.updates, 'update')} were done before; to go on, raise updates")
    return 0


def _restore(
    config: RunConfig, buffer: ReplayBuffer, state: Mapping[str, Any], checkpoint: Path, prompts: PromptSource
) -> None:
    """Fill the buffer from a checkpoint; older versions keep its groups beside admission's state."""
    saved = state.get("groups")
    if saved is None:
        groups = read_buffer(checkpoint / BUFFER_FILE, prompts.prompt)
    else:
        groups = [group_from_dict(data, prompts.prompt(data["lease"]["index"])) for data in saved]
    check_restored(groups, config)
    buffer.load_state_dict({"admission": state["admission"], "groups": groups})


def check_machine(config: RunConfig) -> None:
    """Raise UsageError with every failed preflight check of `offbeat doctor`."""
    found = [f"{finding.name}: {finding.text}; {finding.remedy}" for finding in fatal_checks(config)]
    if found:
        raise UsageError("\n".join(found) if len(found) > 1 else found[0])


class TrainingRun:
    """State of one call of `run_training` while its actors are alive."""

    def __init__(
        self,
        config: RunConfig,
        session: Session,
        plugin: RunPlugin,
        prompts: PromptSource,
        buffer: ReplayBuffer,
        board: Board,
    ) -> None:
        self.config, self.session, self.plugin, self.prompts, self.board = config, session, plugin, prompts, board
        self.buffer = buffer
        self.directory = session.directory
        self.metrics = TrackedMetrics(session, buffer.updates, board.message)
        self.journal = Journal(
            self.directory.journal, config, board.message, resume_from=buffer.updates, run=session.directory.run_id
        )
        self.samples = SampleLog(
            self.directory.path,
            config.samples,
            config.judging.missing_eos_score,
            self.metrics,
            say=board.message,
            resume_from=buffer.updates,
            template=config.prompts.template,
        )
        self.reporter = Reporter(config, self.directory, plugin, len(prompts))
        self.learner: wiring.RayLearner
        self.judge: JudgePool
        self.reference: ReferencePool | None = None
        self.loop: TrainingLoop
        self.watchdog: Watchdog

    def run(self, shared_memory: Path) -> int:
        """Start the actors and train. Returns the exit code."""
        config, say = self.config, self.board.message
        for note in schedule_notes(config.learner.optimizer, config.updates, self.metrics.last):
            say(note)
        model_dir = self.plugin.starting_policy(config, self.directory.start, say, wiring.run_on_all_cores)
        self.session.keep(self.directory.start)
        reference_dir = config.model.reference or model_dir
        judges = wiring.start_judges(config, model_dir)
        self.judge = JudgePool(judges, say)
        references = wiring.start_references(config, reference_dir)
        self.reference = ReferencePool(references, say) if references else None
        self.learner = wiring.start_learner(
            config,
            model_dir,
            reference_dir,
            shared_memory,
            self.directory.failed_batches,
            self._canary_prompt(),
            self.reference,
        )
        # Last: there may be more generators than there is room for.
        generators = wiring.start_generators(
            config, model_dir, reference_dir, self.learner, [*judges, *references], updates=self.buffer.updates
        )
        say(f"starting {counted(['generator'] * len(generators) + ['learner rank'] * config.learner.ranks)}")
        self.loop = TrainingLoop(
            config,
            buffer=self.buffer,
            generators=generators,
            judge=self.judge if self.reference is None else JudgeBesideReference(self.judge, self.reference),
            learner=self.learner,
            events=self._events(),
            observers=self.plugin.observers(config, Path(reference_dir), say),
        )
        self.watchdog = Watchdog(
            [*generators, *judges, *references, *self.learner.each()], config.watchdog, say, self.directory.record_hang
        )
        if told := announce(config):
            say(told)
        try:
            return self.session.drive(self._drive(), self._write_summary)
        finally:
            with contextlib.suppress(RunError):
                self.journal.flush()
            self.metrics.close()

    def _events(self) -> LoopEvents:
        directory, say = self.directory, self.board.message
        guard = DivergenceGuard(self.config.divergence.action, directory.checkpoints, directory.failed_batches, say)
        return LoopEvents(
            on_update=self._on_update,
            on_watch=self._on_watch,
            on_checkpoint=self._save,
            on_message=say,
            on_batch=self._on_batch,
            on_departure=lambda departure: guard.heed(departure, lambda: self._save(self.loop)),
        )

    def _canary_prompt(self) -> tuple[int, ...]:
        """Return a short prompt: engines read it at every weight sync."""
        first = (self.prompts.prompt(number) for number in range(min(CANARY_CANDIDATES, len(self.prompts))))
        return min((prompt.token_ids for prompt in first), key=len)

    async def _drive(self) -> int:
        with stopping_on_signals(self._stop, self.board.message):
            try:
                await self.watchdog.guard(self._run())
            finally:
                await self.reporter.ask(self.judge, self.reference)
            await self.learner.close()
        interrupted = self.buffer.updates < self.config.updates
        interrupts.settle()
        self._write_summary("interrupted" if interrupted else "completed", None)
        return INTERRUPTED if interrupted else 0

    async def _run(self) -> None:
        say, loading = self.board.message, "loading its model"
        await asyncio.gather(
            until_ready(self.learner.ready(), "the learner", loading, say),
            until_ready(self.loop.judge.ready(), "the judge", loading, say),
        )
        if self.session.checkpoint is not None:
            await self.learner.load(self.session.checkpoint)
            self.board.message(f"resumed from {self.session.checkpoint} after {many(self.buffer.updates, 'update')}")
        await self.loop.run(self._main)

    def _stop(self) -> str | None:
        """Ask the loop to end; None while there is nothing to save."""
        self.loop.stop()
        if not self.loop.learning:
            return None
        if self.buffer.updates < self.config.updates:
            return "the run ends after the current update"
        return "all updates are done, saving and evaluating"

    async def _main(self, loop: TrainingLoop) -> None:
        await loop.publish()
        await loop.pool.acknowledged(loop.buffer.updates // self.config.replay.updates_per_publish)
        if self.config.evaluation.prompts:
            loop.evaluation_set = await self._evaluation_set(loop)
        await loop.learn()
        await loop.refresh()
        with loop.progress.clock.spend("checkpointing"):
            await self._save(loop)
        if loop.buffer.updates < self.config.updates:
            return
        # The model before its evaluation, which may fail and must not cost it.
        await self.learner.save_pretrained(self.directory.final)
        save_template(self.config.model, self.directory.final)
        self.session.seal(self.directory.final, loop.buffer.updates)
        with loop.progress.clock.spend("evaluating"):
            await loop.evaluate()
        missing, template = self.config.judging.missing_eos_score, self.config.prompts.template
        write_before_and_after(self.directory.path, loop.judged, missing, template)
        if (departure := loop.divergence.take()) is not None:
            self.board.message(f"warning: the final policy left the band: {departure.describe()}")
        if self.config.learner.average_last:
            await self._average(loop)
        await loop.refresh()

    async def _average(self, loop: TrainingLoop) -> None:
        """Write the mean of the last weights as a model, and evaluate it beside the last weights themselves."""
        await self.learner.adopt_average()
        await self.learner.save_pretrained(self.directory.final_average)
        save_template(self.config.model, self.directory.final_average)
        self.session.seal(self.directory.final_average, loop.buffer.updates)
        with loop.progress.clock.spend("evaluating"):
            publication = await loop.publish(average=True)
            loop.progress.average = await loop.measure(publication, aside=True)

    async def _evaluation_set(self, loop: TrainingLoop) -> EvaluationSet:
        """Return the starting policy's completions: sampled before the first update, read back on a resume."""
        prompts = self.prompts.evaluation_prompts(self.config.evaluation.prompts)
        path = self.directory.baseline
        # Without an update there is nothing to compare with, and a run that starts over may have another model.
        if path.is_file() and loop.buffer.updates:
            saved = json.loads(path.read_text())
            return EvaluationSet(prompts, [group_from_dict(g, p) for g, p in zip(saved, prompts, strict=True)])
        if loop.buffer.updates:
            raise RunError(
                f"{path} is missing: the starting policy's completions cannot be made again; set evaluation.prompts=0"
            )
        baseline: list[Group] = await loop.sample(prompts)
        with writing(path, "then use --resume"):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps([group_to_dict(group) for group in baseline]))
        self.session.seal(path.parent)
        return EvaluationSet(prompts, baseline)

    async def _save(self, loop: TrainingLoop) -> None:
        buffer = self.buffer.state_dict(below=await loop.settled())
        groups = buffer.pop("groups")
        state = {
            "updates": self.buffer.updates,
            "version": self.buffer.version,
            "fixed": self.session.fixed,
            "buffer": buffer,
        }

        async def write(stage: Path) -> None:
            await self.learner.save(stage)
            with writing(f"checkpoint {stage}", "then use --resume", pyarrow.ArrowException):
                await asyncio.to_thread(write_buffer, stage / BUFFER_FILE, groups)
            # Before the checkpoint counts: a run that resumes from it writes no update before it again.
            await asyncio.to_thread(self.journal.flush)

        await self.session.save(self.buffer.updates, state, write)

    def _on_batch(self, batch: Batch) -> Awaitable[None]:
        self.directory.require()
        self.samples.add(batch)
        return self._keep(batch)

    async def _keep(self, batch: Batch) -> None:
        try:
            await asyncio.to_thread(self.journal.add, batch)
        except RunError:
            self.directory.require()  # if it is gone, that is the cause
            raise

    def _on_watch(self, loop: TrainingLoop) -> None:
        snapshot = self.reporter.snapshot(loop)
        self.board.update(snapshot)
        self.metrics.watch(snapshot)

    def _on_update(self, progress: Progress, values: Mapping[str, float]) -> None:
        self.metrics.write(self.buffer.updates, {**numbers(progress.stats), **values})

    def _write_summary(self, status: Status, error: str | None) -> None:
        summary = self.reporter.summary(self.loop, status=status, error=error)
        summary.write(self.directory.summary)
        self.metrics.end(status, summary.model_dump(mode="json"))
        if error is None:
            self.board.close()
            summary.render(self.board.console)
