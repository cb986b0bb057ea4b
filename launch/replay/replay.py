"""`offbeat replay`: train the learner of a run again, on exactly the batches that the run's journal recorded.

Only the learner's ranks are started; batches go to them through the loop's own code (`progress.py`). With nothing
changed they reach the run's weights; with changed settings it shows the policy that the same samples would have made.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from actors.data.text import save_template
from actors.errors import UsageError
from actors.foreign.text import many, shown
from actors.records import Group, Judgement
from actors.replay_buffer.buffer import Batch
from launch.cluster import wiring
from launch.cluster.placement import counted
from launch.cluster.watchdog import Watchdog
from launch.output.journal import learning_settings
from launch.output.journal_reader import JournalReader
from launch.output.metrics import MetricsWriter, numbers
from launch.output.run_directory import RunDirectory, next_free
from launch.output.session import Session
from launch.replay.recorded import recorded_weights, verify_start
from launch.replay.report import (
    ReplayReport,
    Weights,
    changed_settings,
    changed_since,
    first_difference,
    read_lines,
    side_by_side,
    windows,
)
from launch.run.plugins import plugin_of
from launch.run.preflight import check_model
from launch.run.progress import Consumed, batch_metrics
from launch.run.protocols import LearnerPort, PublicationObserver, RunPlugin
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from learner.backend import checkpoints

CHANGEABLE = ("learner", "cluster", "reference")
"""Sections that may be changed: how the learner trains, and where, and whether it holds the reference."""
REPORTS = 10  # progress lines in total


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of `offbeat replay`."""

    run: Path
    loss: str | None = None
    max_staleness: int | None = None
    settings: tuple[str, ...] = ()  # KEY=VALUE
    start: str | None = None
    """Name of the checkpoint to start from; None: the run's start if the journal covers it, else the oldest covered."""
    output: Path | None = None


# ---------------------------------------------------------------- configuration


def replay_config(recorded: RunConfig, request: Request) -> RunConfig:
    """Return `recorded` with the changes of `request`, and another output directory.

    Settings that another kind of loss does not have are left out. Raises UsageError for settings that cannot be changed
    after the fact, or that are wrong.
    """
    for setting in request.settings:
        key = setting.partition("=")[0].strip()
        if key.partition(".")[0] not in CHANGEABLE:
            raise UsageError(
                f"--set {setting}: only learner.*, cluster.* and reference.* can be set; other settings "
                "decided what was sampled, judged and consumed, which the journal has recorded; train a new run with "
                "them"
            )
        if key in ("learner", "learner.loss", "learner.loss.kind"):
            raise UsageError(
                f"--set {setting}: choose the kind of loss with --loss KIND, and set its settings one by one"
            )
    overrides = list(request.settings)
    if request.loss is not None:
        overrides.append(f"learner.loss.kind={request.loss}")
    config = load_config(RunDirectory(request.run).config, overrides)
    if config.reference.count and not recorded.reference.count:
        raise UsageError(
            f"reference.count {config.reference.count} needs reference log-probs of the run's completions, and it "
            "recorded none, with reference.count 0; leave it out"
        )
    output = request.output or next_free(request.run / "replay")
    return config.model_copy(update={"output": str(output)})


@dataclass(frozen=True, slots=True)
class Start:
    """Start of a replay."""

    update: int  # updates before it, which are not replayed
    checkpoint: Path | None  # None: the run's start


def starting_point(request: Request, first: int, end: int) -> Start:
    """Return the requested checkpoint; else the run's start or the oldest checkpoint that the journal covers.

    The journal has every batch of updates `first` to `end`. Raises UsageError if there is no such checkpoint, or the
    journal does not cover it.
    """
    if request.start is None and first == 0:
        return Start(0, None)
    root = RunDirectory(request.run).checkpoints
    names = [path.name for path in sorted(root.glob("update-*")) if request.start in (None, path.name)]
    if request.start is not None and not names:
        raise UsageError(f"--from {request.start}: there is no such checkpoint in {root}; give the name of one there")
    found = [Start(int(checkpoints.read_state(root / name)["updates"]), root / name) for name in names]
    covered = [start for start in found if first <= start.update <= end]
    if not covered:
        have = ", ".join(f"{start.checkpoint.name}" for start in found if start.checkpoint) or "none"
        raise UsageError(
            f"the journal of {request.run} has the batches of updates {first + 1} to {end}, and no checkpoint to start "
            f"from (found: {have}); keep more of both: raise journal.max_mib or checkpoints.keep in the next run"
        )
    return covered[0]


# ---------------------------------------------------------------- batches


def within(batch: Batch, max_staleness: int | None) -> Batch:
    """Leave out the groups of `batch` over `max_staleness` versions; None keeps all."""
    if max_staleness is None:
        return batch
    kept = [pair for pair in zip(batch.groups, batch.staleness, strict=True) if pair[1] <= max_staleness]
    return replace(batch, groups=tuple(group for group, _ in kept), staleness=tuple(age for _, age in kept))


def without_opponents(group: Group) -> Group:
    """Reduce `group` to the policy's completions and their judgement."""
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
    """Counts of the data trained on so far."""

    trained: int = 0
    groups: int = 0
    left_out: int = 0
    observed: dict[str, float] = field(default_factory=dict)  # what observers measured last
    observed_update: int = -1


async def train_again(
    learner: LearnerPort,
    batches: Iterable[Batch],
    config: RunConfig,
    on_update: Callable[[int, dict[str, float]], None],
    *,
    max_staleness: int | None = None,
    observers: Sequence[PublicationObserver] = (),
) -> Counts:
    """Feed `batches`, of one run and in order, to the learner as the loop does.

    Args:
        learner: the ranks.
        batches: those without any group are skipped.
        config: the replay's.
        on_update: called with the number of the update, from 1, and its metrics.
        max_staleness: groups over it are left out.
        observers: measure the policy when the run did.
    """
    counts = Counts()
    for batch in batches:
        kept = within(batch, max_staleness)
        counts.left_out += len(batch.groups) - len(kept.groups)
        if config.opponent is None:
            kept = replace(kept, groups=tuple(map(without_opponents, kept.groups)))
        consumed = Consumed.of(kept, config)
        if not consumed.items:
            continue
        counts.trained += 1
        counts.groups += len(kept.groups)
        stats = await learner.update(consumed.items)
        metrics = numbers(stats) | batch_metrics(kept, consumed)
        step = batch.update + 1
        if step % config.replay.updates_per_publish == 0:
            due = [observer for observer in observers if observer.due(step)]
            observed = await observe(learner, step, config, due)
            if observed:
                counts.observed, counts.observed_update = observed, step
            metrics |= observed
        on_update(step, metrics)
    return counts


async def observe(
    learner: LearnerPort, step: int, config: RunConfig, observers: Sequence[PublicationObserver]
) -> dict[str, float]:
    """Publish the policy after update `step` to `observers` alone; return their metrics."""
    if not observers:
        return {}
    publication = await learner.export(step // config.replay.updates_per_publish)
    metrics: dict[str, float] = {}
    for observer in observers:
        metrics |= await observer.observe(step, publication)
    await learner.retire(publication.version)
    return metrics


# ---------------------------------------------------------------- a replay


def run_replay(recorded: RunConfig, config: RunConfig, request: Request) -> int:
    """Replay the run that `recorded` configured into `config.directory`; return the exit code 0.

    Raises UsageError before training if journal or checkpoint are missing or not as they were written, or settings do
    not fit the run; RunError if the learner fails or the disk refuses.
    """
    plugin = plugin_of(config)
    config = plugin.resolve(config)
    check_model(config, plugin)
    run, directory = RunDirectory(request.run), RunDirectory(config.directory)
    if not plugin.check_model(config) and not run.start.is_dir():
        raise UsageError(f"{run.start} is missing: the policy that the run started from; restore it from a copy")
    if directory.path.is_dir() and any(directory.path.iterdir()):
        raise UsageError(f"output directory {directory.path} is not empty; choose another with --output DIR")
    journal = JournalReader(run.journal, run.run_id)
    start = starting_point(request, journal.first, journal.end)
    notes = verify_start(run, start.checkpoint)
    if journal.unverified:
        notes.append(f"{many(len(journal.unverified), 'part')} of the journal without checksums cannot be verified")
    weights = recorded_weights(run, recorded.updates, journal.end)
    session = Session(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(session.running())
        stack.enter_context(wiring.ray_session(config.cluster))
        wiring.check_stage_resources(config.learner)
        replayed = _Replay(recorded, config, request, journal, start, plugin, weights)
        for note in notes:
            replayed.say(note)
        session.drive(replayed.run(), lambda status, error: None)
        session.seal(directory.final, journal.end)
    report = replayed.report(time.monotonic() - session.started)
    report.write(directory.path / "report.json")
    console = Console(highlight=False)
    report.render(console)
    console.print(Text(shown(f"{directory.path} has metrics.jsonl, report.json and final/")), soft_wrap=True)
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
        plugin: RunPlugin,
        weights: Path | None,
    ) -> None:
        self._recorded_weights = weights
        self._recorded, self._config, self._request, self._plugin = recorded, config, request, plugin
        self._journal, self._start = journal, start
        self._run, self._directory = RunDirectory(request.run), RunDirectory(config.directory)
        self._console = Console(stderr=True, highlight=False)
        self._reported = start.update
        self._counts = Counts()

    async def run(self) -> int:
        """Train once more. Returns the exit code 0."""
        config = self._config
        model_dir = config.model.path if self._plugin.check_model(config) else str(self._run.start)
        reference_dir = config.model.reference or model_dir
        # Nothing is published but to observers here.
        publication = config.publication.model_copy(update={"transport": "object_store"})
        config = config.model_copy(update={"publication": publication})
        learner = wiring.start_learner(
            config, model_dir, reference_dir, self._directory.path, self._directory.failed_batches
        )
        self.say(f"starting {counted(['learner rank'] * config.learner.ranks)}")
        await learner.ready()
        if self._start.checkpoint is not None:
            await learner.load(self._start.checkpoint)
            self.say(f"starting from {self._start.checkpoint}")
        metrics = MetricsWriter(self._directory.path, say=self.say)
        observers = self._plugin.observers(config, Path(reference_dir), self.say)

        def on_update(step: int, values: dict[str, float]) -> None:
            metrics.write(step, values)
            self._report_progress(step, values["loss"])

        try:
            training = train_again(
                learner,
                self._journal.batches(self._start.update),
                self._bounds_kept(),
                on_update,
                max_staleness=self._request.max_staleness,
                observers=observers,
            )
            watchdog = Watchdog(learner.each(), config.watchdog, self.say, self._directory.record_hang)
            self._counts = await watchdog.guard(training)
            if self._counts.observed_update != self._journal.end:
                self._counts.observed = await observe(learner, self._journal.end, config, observers)
        finally:
            metrics.close()
        await learner.save_pretrained(self._directory.final)
        save_template(config.model, self._directory.final)
        await learner.close()
        return 0

    def _bounds_kept(self) -> RunConfig:
        """Raise the staleness bound to the oldest recorded batch: the run may have lowered it on a resume."""
        ages = [age for row in self._journal.rows for age in row.staleness]
        bound = max([self._config.replay.max_staleness, *ages])
        replay = self._config.replay.model_copy(update={"max_staleness": bound})
        return self._config.model_copy(update={"replay": replay})

    def report(self, seconds: float) -> ReplayReport:
        """Compare the replay with the run, after `seconds` of it."""
        counts = self._counts
        first, end = self._start.update, self._journal.end
        (recorded, damaged), (replayed, _) = (
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
                str(update): changed
                for update, part in self._journal.settings(first)
                if (changed := changed_since(part, settings))
            },
            weights=self._weights(),
            first_difference=first_difference(recorded, replayed),
            windows=parts,
            metrics=side_by_side(recorded, replayed, parts),
            damaged=damaged,
            exact={
                name: {"recorded": recorded.get(end, {}).get(name), "replay": value}
                for name, value in counts.observed.items()
            },
            seconds=seconds,
        )

    def _weights(self) -> Weights | None:
        """Compare the replay's weights with the run's after the same update."""
        from learner.backend.compare import compare_models

        if self._recorded_weights is None:
            return None
        found = compare_models(self._recorded_weights, self._directory.final)
        largest = found.largest_difference if math.isfinite(found.largest_difference) else None
        return Weights(str(self._recorded_weights), found.tensors, found.different, largest, found.tensor)

    def _report_progress(self, step: int, loss: float) -> None:
        first, end = self._start.update, self._journal.end
        if step == end or (step - self._reported) * REPORTS >= end - first:
            self._reported = step
            self.say(f"update {step}/{end} | loss {loss:.4f}")

    def say(self, text: str) -> None:
        self._console.print(Text(shown(f"offbeat: {text}", lines=True)), soft_wrap=True)
