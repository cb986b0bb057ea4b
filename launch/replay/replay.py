"""`offbeat replay`: the learner of a run once more, on exactly the batches that the run's journal recorded.

Only the learner's ranks are started; batches go to them through the loop's own code (`consumption.py`). With nothing
changed they reach the run's weights; what is changed answers what would have become of the policy on the same samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from actors.errors import UsageError
from actors.records import Game, Group, Judgement, Pair
from actors.replay_buffer.buffer import Batch
from actors.settings import WORLD
from launch.cluster import wiring
from launch.output.journal import learning_settings
from launch.output.journal_reader import JournalReader
from launch.output.metrics import MetricsWriter, numbers
from launch.output.run_directory import RunDirectory, next_free
from launch.replay.report import (
    ReplayReport,
    Weights,
    changed_settings,
    first_difference,
    read_lines,
    side_by_side,
    windows,
)
from launch.run.consumption import Consumed, batch_metrics
from launch.run.exact_evaluation import ExactEvaluation, exact_evaluation
from launch.run.loop import stage_name
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.train import check_model, ending_on_sigterm
from learner.backend import checkpoints
from learner.config import CorrectionConfig, LossConfig

CHANGEABLE = ("learner", "cluster")
"""Sections that may be set: how the learner trains, and where."""
REPORTS = 10
"""Lines of progress."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `offbeat replay` was asked for."""

    run: Path
    loss: str | None = None
    max_staleness: int | None = None
    settings: tuple[str, ...] = ()
    """KEY=VALUE."""
    start: str | None = None
    """Name of the checkpoint to start from; None: the run's start, or else the oldest that the journal covers."""
    output: Path | None = None


class ReplayLearner(Protocol):
    """What a replay needs of the learner's ranks."""

    async def update(self, items: Sequence[Pair] | Sequence[Game]) -> Any:
        """One optimizer step; returns `learner.records.UpdateStats`."""

    async def exact_table(self) -> Any: ...


# ---------------------------------------------------------------- configuration


def recorded_config(run: Path) -> RunConfig:
    """The configuration of the run in `run`. Raises UsageError when there is none."""
    path = RunDirectory(run).config
    if not path.is_file():
        raise UsageError(f"{run} holds no run: it has no config.yaml; give the output directory of `offbeat train`")
    return load_config(path)


def replay_config(recorded: RunConfig, request: Request) -> RunConfig:
    """`recorded` with what `request` changes, and a directory of its own.

    What another loss does not read goes back to its default, as the opponent with a loss on pairs.
    Raises UsageError for settings that cannot be changed after the fact, or that make no configuration.
    """
    for setting in request.settings:
        key = setting.partition("=")[0].strip()
        if key.partition(".")[0] not in CHANGEABLE:
            raise UsageError(
                f"--set {setting}: only {' and '.join(f'{name}.*' for name in CHANGEABLE)} can be set; other settings "
                "decided what was sampled, judged and consumed, and the journal holds that as it was; train a new run "
                "with them"
            )
        if key in ("learner", "learner.loss", "learner.loss.kind"):
            raise UsageError(f"--set {setting}: give the kind of loss by --loss KIND, and its settings one by one")
    overrides = list(request.settings)
    if request.loss is not None:
        overrides += [f"learner.loss.kind={request.loss}", *_resets(request.loss)]
    config = load_config(RunDirectory(request.run).config, overrides)
    output = request.output or next_free(request.run / "replay")
    return config.model_copy(update={"output": str(output)})


def _resets(kind: str) -> list[str]:
    """Overrides that leave out what a loss of this kind does not read."""
    loss = LossConfig.model_construct(kind=kind)
    if loss.has_opponent:
        return []
    if loss.on_pairs:
        return ["opponent={}", "learner.correction={}"]
    default = CorrectionConfig()
    names = ("opponents", "opponent_cap")
    return ["opponent={}", *(f"learner.correction.{name}={getattr(default, name)}" for name in names)]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a replay begins."""

    update: int
    """Updates done before, which are not replayed."""
    checkpoint: Path | None
    """None: the run's start."""


def starting_point(request: Request, first: int, end: int) -> Start:
    """The checkpoint asked for; else the run's start where the journal covers it, else the oldest that it covers.

    Args:
        request: the run, and what was asked for.
        first: the update from which on the journal has every batch.
        end: updates that the journal knows.

    Raises:
        UsageError: there is no such checkpoint, or the journal does not go on from it.
    """
    if request.start is None and first == 0:
        return Start(0, None)
    root = RunDirectory(request.run).checkpoints
    names = [path.name for path in sorted(root.glob("update-*"))] if request.start is None else [request.start]
    found = [Start(int(checkpoints.read_state(root / name)["updates"]), root / name) for name in names]
    covered = [start for start in found if first <= start.update <= end]
    if not covered:
        have = ", ".join(f"{start.checkpoint.name}" for start in found if start.checkpoint) or "none"
        raise UsageError(
            f"the journal of {request.run} has the batches of updates {first + 1} to {end}, and no checkpoint to start "
            f"them from (there is {have}); keep more of both: raise journal.max_mib or checkpoints.keep in the next run"
        )
    return covered[0]


# ---------------------------------------------------------------- batches


def within(batch: Batch, max_staleness: int | None) -> Batch:
    """`batch` without the groups over `max_staleness` versions; None keeps all."""
    if max_staleness is None:
        return batch
    kept = [pair for pair in zip(batch.groups, batch.staleness, strict=True) if pair[1] <= max_staleness]
    return replace(batch, groups=tuple(group for group, _ in kept), staleness=tuple(age for _, age in kept))


def without_opponents(group: Group) -> Group:
    """`group` as a run without opponents would have it: the policy's completions, and their judgement alone."""
    own = [number for number, completion in enumerate(group.completions) if not completion.opponent]
    judgement = group.judgement
    assert judgement is not None
    preferences = judgement.preferences
    return replace(
        group,
        completions=tuple(group.completions[i] for i in own),
        judgement=Judgement(
            tuple(judgement.scores[i] for i in own),
            None if preferences is None else tuple(tuple(preferences[i][j] for j in own) for i in own),
        ),
    )


@dataclass(slots=True)
class Counts:
    """What was trained on so far."""

    trained: int = 0
    groups: int = 0
    left_out: int = 0


async def train_again(
    learner: ReplayLearner,
    batches: Iterable[Batch],
    config: RunConfig,
    on_update: Callable[[int, dict[str, float]], None],
    *,
    max_staleness: int | None = None,
    exact: ExactEvaluation | None = None,
) -> Counts:
    """Feeds `batches` to the learner as the loop does, those without any group skipped.

    Args:
        learner: the ranks.
        batches: of one run, in order.
        config: the replay's.
        on_update: told the number of the update, from 1, and its metrics.
        max_staleness: groups over it are left out.
        exact: evaluates by enumeration when the run did.
    """
    counts, every = Counts(), config.evaluation.exact_every_updates
    for batch in batches:
        kept = within(batch, max_staleness)
        counts.left_out += len(batch.groups) - len(kept.groups)
        if not config.learner.loss.has_opponent:
            kept = replace(kept, groups=tuple(map(without_opponents, kept.groups)))
        consumed = Consumed.of(kept, config)
        if not consumed.items:
            continue
        counts.trained += 1
        counts.groups += len(kept.groups)
        stats = await learner.update(consumed.items)
        metrics = numbers(stats) | batch_metrics(kept, consumed)
        step = batch.update + 1
        if exact is not None and (step % every == 0 or step == config.updates):
            metrics |= exact.measure(step, await learner.exact_table()).metrics()
        on_update(step, metrics)
    return counts


# ---------------------------------------------------------------- a replay


def run_replay(recorded: RunConfig, config: RunConfig, request: Request) -> int:
    """Replays the run that `recorded` configured into `config.directory`. Returns the exit code 0.

    Raises:
        UsageError: no journal, no such checkpoint, or settings that do not fit the run; nothing was trained.
        RunError: the learner failed, or the disk refused.
    """
    check_model(config)
    run, directory = RunDirectory(request.run), RunDirectory(config.directory)
    if config.model.path == WORLD and not run.start.is_dir():
        raise UsageError(f"{run.start} is missing: the policy that the run started from; restore it from a copy")
    if directory.path.is_dir() and any(directory.path.iterdir()):
        raise UsageError(f"output directory {directory.path} is not empty; choose another with --output DIR")
    journal = JournalReader(run.journal)
    start = starting_point(request, journal.first, journal.end)
    with contextlib.ExitStack() as stack:
        directory.begin(config)
        stack.callback(directory.close)
        stack.enter_context(wiring.ray_session(config.cluster))
        # After Ray, which sets a handler of its own.
        stack.enter_context(ending_on_sigterm())
        wiring.check_stage_resources(config.learner)
        report = asyncio.run(_Replay(recorded, config, request, journal, start, directory).run())
    report.write(directory.path / "report.json")
    console = Console(highlight=False)
    report.render(console)
    console.print(f"{directory.path} has metrics.jsonl, report.json and final/", soft_wrap=True, markup=False)
    return 0


class _Replay:
    """One replay while the ranks are alive."""

    def __init__(
        self,
        recorded: RunConfig,
        config: RunConfig,
        request: Request,
        journal: JournalReader,
        start: Start,
        directory: RunDirectory,
    ) -> None:
        self._recorded, self._config, self._request = recorded, config, request
        self._journal, self._start, self._directory = journal, start, directory
        self._run = RunDirectory(request.run)
        self._console = Console(stderr=True, highlight=False)
        self._reported = start.update

    async def run(self) -> ReplayReport:
        config, started = self._config, time.monotonic()
        model_dir = str(self._run.start) if config.model.path == WORLD else config.model.path
        reference_dir = config.model.reference or model_dir
        # Nothing is published.
        publication = config.publication.model_copy(update={"transport": "object_store"})
        learner = wiring.start_learner(
            config.model_copy(update={"publication": publication}),
            model_dir,
            reference_dir,
            self._directory.path,
            self._directory.failed_batches,
        )
        self._say(f"starting {config.learner.ranks} learner ranks")
        await learner.ready()
        if self._start.checkpoint is not None:
            await learner.load(self._start.checkpoint)
            self._say(f"starting from {self._start.checkpoint}")
        metrics = MetricsWriter(self._directory.path)
        exact = exact_evaluation(config, Path(reference_dir), self._say)

        def on_update(step: int, values: dict[str, float]) -> None:
            metrics.write(step, values)
            self._report_progress(step, values["loss"])

        try:
            counts = await train_again(
                learner,
                self._journal.batches(self._start.update),
                self._bounds_kept(),
                on_update,
                max_staleness=self._request.max_staleness,
                exact=exact,
            )
            at_the_end = {} if exact is None else await self._measured(learner, exact)
        finally:
            metrics.close()
        await learner.save_pretrained(self._directory.final)
        await learner.close()
        return self._report(counts, at_the_end, time.monotonic() - started)

    async def _measured(self, learner: ReplayLearner, exact: ExactEvaluation) -> dict[str, float]:
        """The policy as it ends, by enumeration."""
        end = self._journal.end
        if not exact.history or exact.history[-1].update != end:
            exact.measure(end, await learner.exact_table())
        return exact.history[-1].metrics()

    def _bounds_kept(self) -> RunConfig:
        """A run may have gone on under a lower bound than it began with; its early batches kept to theirs."""
        ages = [age for row in self._journal.rows for age in row.staleness]
        bound = max([self._config.replay.max_staleness, *ages])
        replay = self._config.replay.model_copy(update={"max_staleness": bound})
        return self._config.model_copy(update={"replay": replay})

    def _report(self, counts: Counts, exact: dict[str, float], seconds: float) -> ReplayReport:
        first, end = self._start.update, self._journal.end
        recorded, replayed = (
            read_lines(path / "metrics.jsonl", first, end) for path in (self._run.path, self._directory.path)
        )
        settings = learning_settings(self._recorded)
        parts = windows(first, end)
        return ReplayReport(
            run=str(self._run.path),
            first=first,
            end=end,
            trained=counts.trained,
            groups=counts.groups,
            left_out=counts.left_out,
            max_staleness=self._request.max_staleness,
            changed=changed_settings(settings, learning_settings(self._config)),
            resumed_with={
                str(update): list(changed)
                for update, part in self._journal.settings(first)
                if (changed := changed_settings(part, settings))
            },
            weights=self._weights(),
            first_difference=first_difference(recorded, replayed),
            windows=parts,
            metrics=side_by_side(recorded, replayed, parts),
            exact={
                name: {"recorded": recorded.get(end, {}).get(name), "replay": value} for name, value in exact.items()
            },
            seconds=seconds,
        )

    def _weights(self) -> Weights | None:
        """The replay's weights beside those that the run had after the same update."""
        from learner.backend.compare import compare_models

        end = self._journal.end
        saved = self._run.checkpoints / stage_name(end) / checkpoints.MODEL
        recorded = self._run.final if end == self._recorded.updates and self._run.final.is_dir() else saved
        if not recorded.is_dir():
            return None
        found = compare_models(recorded, self._directory.final)
        largest = found.largest_difference if math.isfinite(found.largest_difference) else None
        return Weights(str(recorded), found.tensors, found.different, largest, found.tensor)

    def _report_progress(self, step: int, loss: float) -> None:
        first, end = self._start.update, self._journal.end
        if step == end or (step - self._reported) * REPORTS >= end - first:
            self._reported = step
            self._say(f"update {step}/{end} | loss {loss:.4f}")

    def _say(self, text: str) -> None:
        self._console.print(f"offbeat: {text}", markup=False, soft_wrap=True)
