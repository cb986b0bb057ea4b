"""One training run from its config to its summary: prepares, wires, trains, evaluates, saves, cleans up.

The order matters: everything that a user can get wrong is checked before an actor starts, and everything that was
started is ended whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors import world
from actors.data.prompts import PromptSource, load_tokenizer
from actors.errors import RunError, UsageError
from actors.hub import check_same_architecture, read_config, require_safetensors
from actors.records import Group
from actors.replay_buffer.buffer import ReplayBuffer, group_from_dict, group_to_dict
from actors.settings import WORLD
from launch.cluster import wiring
from launch.cluster.placement import address_to_join
from launch.output.board import Board
from launch.output.journal import Journal
from launch.output.metrics import MetricsWriter, numbers
from launch.output.reporter import Reporter, Status
from launch.output.run_directory import RunDirectory, SharedMemory
from launch.run.exact_evaluation import exact_evaluation
from launch.run.judge_pool import JudgePool
from launch.run.loop import EvaluationSet, TrainingLoop, stage_name
from launch.run.progress import Progress
from launch.run.staleness_limit import announce
from launch.settings.run import RunConfig
from learner.backend import checkpoints

INTERRUPTED = 130
SHOWN_SKIPS = 5
"""Malformed rows shown one by one."""


def run_training(config: RunConfig, *, resume: bool = False) -> int:
    """Runs `config` to its end, or on from its last checkpoint.

    Returns:
        The exit code: 0 when all updates are done, 130 after an interrupt that was checkpointed.

    Raises:
        UsageError: wrong paths, data or settings; nothing was trained.
        RunError: the run failed; the last checkpoint stands.
    """
    config = with_world_defaults(config)
    tokenizer = world.tokenizer() if config.model.path == WORLD else load_tokenizer(_tokenizer_path(config))
    prompts = PromptSource(config.prompts, tokenizer)
    check_model(config)
    run = RunDirectory.open(config, resume=resume)
    checkpoint = checkpoints.latest(run.checkpoints) if resume else None
    state = checkpoints.read_state(checkpoint) if checkpoint else {}
    if state:
        check_same_run(state["fixed"], fixed_settings(config, prompts), checkpoint)
    buffer = ReplayBuffer(config.replay, prompts, config.updates)
    if state:
        buffer.load_state_dict(state["buffer"])
    check_machine(config)
    with contextlib.ExitStack() as stack:
        run.begin(config)
        stack.callback(run.close)
        board = stack.enter_context(Board())
        for line in prompts.skipped[:SHOWN_SKIPS]:
            board.message(f"skipped {line}")
        if prompts.skipped:
            board.message(f"{len(prompts.skipped)} malformed rows skipped, {len(prompts)} prompts left")
        shared_memory = SharedMemory()
        stack.callback(shared_memory.close)
        address = address_to_join(config.cluster)
        if address is None:
            shared_memory.require(config.cluster.object_store_mib << 20, what="Ray's object store")
        board.message("starting Ray" if address is None else f"joining Ray at {address}")
        stack.enter_context(wiring.ray_session(config.cluster))
        # After Ray, which sets a handler of its own.
        stack.enter_context(ending_on_sigterm())
        wiring.check_resources(config)
        session = _Session(config, run, prompts, buffer, board, checkpoint)
        return session.run(shared_memory.path)


class _Session:
    """What one call of `run_training` holds while actors are alive."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        prompts: PromptSource,
        buffer: ReplayBuffer,
        board: Board,
        checkpoint: Path | None,
    ) -> None:
        self.config = config
        self.run_dir = run
        self.prompts = prompts
        self.board = board
        self.checkpoint = checkpoint
        self.buffer = buffer
        self.metrics = MetricsWriter(run.path, resume_from=self.buffer.updates)
        self.journal = Journal(run.journal, config, board.message, resume_from=self.buffer.updates)
        self.reporter = Reporter(config, run)
        self.judging_seconds = 0.0
        self.judging_figures: dict[str, float] = {}
        self.learner: wiring.RayLearner
        self.judge: JudgePool

    def run(self, shared_memory: Path) -> int:
        model_dir = self._starting_policy()
        reference_dir = self.config.model.reference or model_dir
        self.judge = JudgePool(wiring.start_judges(self.config), self.board.message)
        self.learner = wiring.start_learner(
            self.config, model_dir, reference_dir, shared_memory, self.run_dir.failed_batches
        )
        # Last: of generators there may be more than there is room for.
        host = self.learner.host if self.config.publication.transport == "shm" else None
        generators = wiring.start_generators(self.config, model_dir, reference_dir, host)
        self.board.message(f"starting {len(generators)} generators and {self.config.learner.ranks} learner ranks")
        loop = TrainingLoop(
            self.config,
            buffer=self.buffer,
            generators=generators,
            judge=self.judge,
            learner=self.learner,
            on_update=self._on_update,
            on_watch=lambda loop: self.board.update(self.reporter.snapshot(loop)),
            on_checkpoint=self._save,
            on_message=self.board.message,
            on_batch=self.journal.add,
            exact=exact_evaluation(self.config, Path(reference_dir), self.board.message),
        )
        if self.config.learner.loss.has_opponent:
            self.board.message(announce(self.config))
        try:
            return asyncio.run(self._drive(loop))
        except (KeyboardInterrupt, asyncio.CancelledError):
            with contextlib.suppress(RunError):
                self._write_summary(loop, status="interrupted", error="ended at once; the last checkpoint stands")
            raise
        except BaseException as error:
            with contextlib.suppress(RunError):  # a full disk must not hide what ended the run
                self._write_summary(loop, status="failed", error=str(error) or type(error).__name__)
            raise
        finally:
            self.metrics.close()
            with contextlib.suppress(RunError):
                self.journal.flush()

    async def _drive(self, loop: TrainingLoop) -> int:
        try:
            with _stopping_on_signals(loop, self.board.message):
                await asyncio.gather(self.learner.ready(), self.judge.ready())
                if self.checkpoint is not None:
                    await self.learner.load(self.checkpoint)
                    self.board.message(f"resumed from {self.checkpoint} after {self.buffer.updates} updates")
                await loop.run(self._main)
        finally:
            self.judging_seconds = await self.judge.seconds()
            self.judging_figures = await self.judge.figures()
        await self.learner.close()
        interrupted = self.buffer.updates < self.config.updates
        self._write_summary(loop, status="interrupted" if interrupted else "completed")
        return INTERRUPTED if interrupted else 0

    async def _main(self, loop: TrainingLoop) -> None:
        await loop.publish()
        await loop.pool.acknowledged(loop.buffer.updates // self.config.replay.updates_per_publish)
        if self.config.evaluation.prompts:
            loop.evaluation_set = await self._evaluation_set(loop)
        await loop.learn()
        await loop.pool.refresh()
        with loop.progress.clock.spend("checkpointing"):
            await self._save(loop)
        if loop.buffer.updates < self.config.updates:
            self.board.message("interrupted: checkpoint written, go on with --resume")
            return
        # The model before its evaluation, which may fail and must not cost it.
        await self.learner.save_pretrained(self.run_dir.final)
        with loop.progress.clock.spend("evaluating"):
            await loop.evaluate()
        await loop.pool.refresh()

    async def _evaluation_set(self, loop: TrainingLoop) -> EvaluationSet:
        """The starting policy's completions: sampled before the first update, read back on a resume."""
        prompts = self.prompts.evaluation_prompts(self.config.evaluation.prompts)
        path = self.run_dir.baseline
        # Without an update there is nothing to compare it to, and a run that starts over may have another model.
        if path.is_file() and loop.buffer.updates:
            saved = json.loads(path.read_text())
            return EvaluationSet(prompts, [group_from_dict(g, p) for g, p in zip(saved, prompts, strict=True)])
        if loop.buffer.updates:
            raise RunError(
                f"{path} is missing: the starting policy's completions cannot be made again; set evaluation.prompts=0"
            )
        baseline: list[Group] = await loop.sample(prompts)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps([group_to_dict(group) for group in baseline]))
        os.replace(temporary, path)
        return EvaluationSet(prompts, baseline)

    async def _save(self, loop: TrainingLoop) -> None:
        below = await loop.settled()
        state = {
            "updates": self.buffer.updates,
            "version": self.buffer.version,
            "fixed": fixed_settings(self.config, self.prompts),
            "buffer": self.buffer.state_dict(below=below),
        }
        tag = stage_name(self.buffer.updates)
        stage = checkpoints.begin(self.run_dir.checkpoints, tag)
        try:
            await self.learner.save(stage)
            checkpoints.write_state(stage, state)
            # Before the checkpoint counts: a run that goes on from it writes no update before it again.
            self.journal.flush()
        except BaseException:
            checkpoints.discard(stage)
            raise
        checkpoints.commit(self.run_dir.checkpoints, tag, self.config.checkpoints.keep)

    def _starting_policy(self) -> str:
        """Directory of the policy to start from; the embedded world's is trained here first."""
        if self.config.model.path != WORLD:
            return self.config.model.path
        from learner.world.policy import train_sft

        self.board.message(f"supervised training of the world's policy: {self.config.world.sft_updates} updates")
        started = time.monotonic()
        wiring.run_on_all_cores(
            train_sft, self.run_dir.start, updates=self.config.world.sft_updates, seed=self.config.world.seed
        )
        self.reporter.sft_seconds = time.monotonic() - started
        return str(self.run_dir.start)

    def _on_update(self, progress: Progress, values: Mapping[str, float]) -> None:
        self.metrics.write(self.buffer.updates, {**numbers(progress.stats), **values})

    def _write_summary(self, loop: TrainingLoop, *, status: Status, error: str | None = None) -> None:
        summary = self.reporter.summary(
            loop,
            judging_seconds=self.judging_seconds,
            judging_figures=self.judging_figures,
            status=status,
            error=error,
        )
        summary.write(self.run_dir.summary)
        if error is None:
            self.board.close()
            summary.render(self.board.console)


def fixed_settings(config: RunConfig, prompts: PromptSource) -> dict[str, Any]:
    """What a resumed run must share with the saved one, as JSON values; everything else may change."""
    fixed: dict[str, Any] = {
        "the prompts": prompts.fingerprint(),
        "prompts.seed": config.prompts.seed,
        "deterministic": config.deterministic,
        "prompts.shuffle": config.prompts.shuffle,
        "model.path": config.model.path,
        "model.reference": config.model.reference,
        "sampling": config.sampling.model_dump(mode="json"),
        "learner.loss.kind": config.learner.loss.kind,
        "evaluation.prompts": config.evaluation.prompts,
    }
    if config.learner.loss.has_opponent:
        names = {"kind", "beta", "completions_per_prompt", "max_staleness"}
        fixed["opponent"] = config.opponent_drawn.model_dump(mode="json", include=names)
    if config.model.path == WORLD:
        fixed["world"] = config.world.model_dump(mode="json")
    return fixed


def check_same_run(saved: Mapping[str, Any], given: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Raises `UsageError` naming every fixed setting that is not what the checkpoint was saved with.

    What the checkpoint does not tell is not compared, and evaluation may be turned off.
    """
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


def with_world_defaults(config: RunConfig) -> RunConfig:
    """In the embedded world a completion ends at any token that no response may hold."""
    if config.prompts.source != WORLD or config.sampling.stop_token_ids:
        return config
    sampling = config.sampling.model_copy(update={"stop_token_ids": world.STOP_TOKEN_IDS})
    return config.model_copy(update={"sampling": sampling})


def check_machine(config: RunConfig) -> None:
    """Raises `UsageError` with everything that stands against the run on this machine, as `offbeat doctor` says it."""
    from launch.doctor.checkup import fatal_checks

    found = [f"{finding.name}: {finding.text}; {finding.remedy}" for finding in fatal_checks(config)]
    if found:
        raise UsageError("\n".join(found) if len(found) > 1 else found[0])


def check_model(config: RunConfig) -> None:
    """Raises `UsageError` when a model cannot be read, the policy is too short for the run's sequences, or the
    reference does not fit it."""
    if config.model.path == WORLD:
        if config.model.reference is not None:
            raise UsageError(
                f"model.reference {config.model.reference!r} is given and model.path is world, whose policy is trained "
                "by the run itself and is its own reference; leave model.reference out, or give both as directories"
            )
        return
    model = _read_config("model.path", config.model.path)
    if config.model.reference is not None:
        reference = _read_config("model.reference", config.model.reference)
        if reference.get_text_config().vocab_size != model.get_text_config().vocab_size:
            raise UsageError(
                f"model.reference {config.model.reference} has a vocabulary of "
                f"{reference.get_text_config().vocab_size} tokens and the policy {config.model.path} one of "
                f"{model.get_text_config().vocab_size}; use a reference of the policy's own vocabulary"
            )
        if config.opponent_drawn.needs_second_model:
            check_same_architecture(config.model.path, config.model.reference)
    longest = getattr(model, "max_position_embeddings", None)
    if longest is not None and config.generators.max_model_len > longest:
        raise UsageError(
            f"generators.max_model_len {config.generators.max_model_len} exceeds the {longest} positions of "
            f"{config.model.path}; lower it to {longest} or less"
        )


def _read_config(setting: str, path: str) -> Any:
    try:
        require_safetensors(path)
        return read_config(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{setting} {path!r} holds no model that transformers can read: {str(error).splitlines()[0]}; give a "
            "Hugging Face directory with config.json and weights, or a hub name"
        ) from None


def _tokenizer_path(config: RunConfig) -> str:
    return config.model.tokenizer or config.model.path


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends what is going on as Ctrl-C does, so that everything that was started is ended too."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _stopping_on_signals(loop: TrainingLoop, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after the current update, or at once while there is none to save; the
    second ends it at once."""
    running = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if loop.stopped or not loop.learning:
            task.cancel()
        elif loop.buffer.updates < loop.config.updates:
            say("interrupted: the run ends after the current update; a second time ends it at once")
        else:
            say("interrupted: all updates are done, saving and evaluating; a second time ends the run at once")
        loop.stop()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        running.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            running.remove_signal_handler(number)
            signal.signal(number, handler)
