"""The training loop: batches in, updates out, weights published while rollouts continue.

| asyncio task | does |
|---|---|
| `learn` | takes batches from the replay buffer, updates the policy, publishes weights |
| `GeneratorPool.run` | keeps the generators supplied with leases and weights |
| `_judge`, two per judge | takes finished groups to the judges and into the buffer |
| `_draw_opponents` | samples opponents late, if they have a staleness bound of their own |
| `_watch` | expires leases, refreshes the board |
| `_retire` | frees publications that nobody needs any more |

Synchronous training is this same loop with `max_staleness: 0`, which leaves the tasks nothing to overlap. It must not
depend on Ray: see `protocols.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.errors import RunError, ray_logs
from actors.records import Failure, Group, Prompt, flatten
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from actors.replay_buffer.opponents import OpponentScheduler
from launch.run import win_rate
from launch.run.divergence import Departure, DivergenceWatch, figures_of
from launch.run.evaluation import Evaluated, EvaluationSet
from launch.run.pools.generator_pool import GeneratorPool
from launch.run.pools.judge_pool import BATCHES_EACH, judge_all
from launch.run.pools.lockstep import LockstepPool
from launch.run.progress import Consumed, Progress, batch_metrics
from launch.run.protocols import (
    GeneratorPort,
    JudgePort,
    LearnerPort,
    PoolEvents,
    PoolLimits,
    Publication,
    PublicationObserver,
)
from launch.run.staleness_limit import LimitProbe
from launch.run.tasks import first_failure
from launch.settings.run import RunConfig

WATCH_SECONDS = 1.0
STATUS_CALLS = 100  # each time; more generators take turns
MAX_EMPTY_UPDATES = 3
"""Updates in a row without any group before the run fails, so that failures never look like the end of the data."""


async def _not_heeded(departure: Departure) -> None: ...


async def _not_kept(batch: Batch) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopEvents:
    """Callbacks of a loop."""

    on_update: Callable[[Progress, Mapping[str, float]], None]  # with the metrics of each update
    on_watch: Callable[[TrainingLoop], None]  # about every second
    on_checkpoint: Callable[[TrainingLoop], Awaitable[None]]
    on_message: Callable[[str], None]
    on_batch: Callable[[Batch], Awaitable[None]] = _not_kept
    """Called with each batch before it is trained on. The update does not wait for the result; the next one does."""
    on_departure: Callable[[Departure], Awaitable[None]] = _not_heeded  # with a figure that left the band


class TrainingLoop:
    """Runs updates until `config.updates`, an interrupt or a failure."""

    def __init__(
        self,
        config: RunConfig,
        *,
        buffer: ReplayBuffer,
        generators: Sequence[GeneratorPort],
        judge: JudgePort,
        learner: LearnerPort,
        events: LoopEvents,
        observers: Sequence[PublicationObserver] = (),
    ) -> None:
        self.limit = LimitProbe(config)
        self.divergence = DivergenceWatch(config.divergence, config.divergence.max_kl)
        self.evaluation_set: EvaluationSet | None = None
        self.judged: Sequence[Group] = ()
        """Completions of the newest evaluation, the policy's before the starting policy's (`win_rate.against`)."""
        self.evaluation_tokens = 0
        self.config = config
        self.buffer = buffer
        self.judge = judge
        self.learner = learner
        self.progress = Progress()
        self.stopped = False
        self.learning = False
        """True from the wait for the first update on."""
        self._observers = observers
        self._events, self._on_message = events, events.on_message
        self._judging: asyncio.Queue[Group] = asyncio.Queue()
        self._retiring: asyncio.Queue[int] = asyncio.Queue()
        self._tasks: asyncio.TaskGroup | None = None
        self._evaluation: asyncio.Task[None] | None = None
        self._warn_above = config.generators.log_prob_tolerance
        fresh = None if config.opponent is None else config.opponent.max_staleness
        self._scheduler = None if fresh is None else OpponentScheduler(config.replay.prompts_per_version, fresh)
        pool = LockstepPool if config.deterministic else GeneratorPool
        limits = PoolLimits(
            max_running=config.generators.max_running_prompts,
            take_seconds=config.publication.timeout_seconds,
            lease_seconds=config.replay.lease_seconds,
            draw="all" if self._scheduler is None else "policy",
        )
        heard = PoolEvents(on_group=self._on_group, on_retire=self._retiring.put_nowait, on_message=events.on_message)
        self.pool = pool(generators, buffer, limits, heard)

    async def refresh(self, most: int | None = None) -> None:
        """Ask the generators, or `most` of them, for their figures; note how far they are from the learner."""
        await self.pool.refresh(most)
        for status in self.pool.statuses:
            if status.gap is not None:
                self._note_gap(status.gap)

    def stop(self) -> None:
        """Ask the loop to end after the current update and a checkpoint."""
        self.stopped = True
        self.pool.changed.notify()

    async def run(self, main: Callable[[TrainingLoop], Awaitable[None]]) -> None:
        """Run the background tasks while `main(self)` runs, and end them with it.

        Raises the first failure of any task, unwrapped.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                judging = BATCHES_EACH * max(self.config.judging.count, self.config.reference.count)
                background = [tasks.create_task(each) for each in (self.pool.run(), self._watch(), self._retire())]
                background += [tasks.create_task(self._judge()) for _ in range(judging)]
                background += (
                    [tasks.create_task(self._draw_opponents(self._scheduler))] if self._scheduler is not None else []
                )
                await main(self)
                for task in background:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_failure(group) from None

    async def publish(self, *, average: bool = False) -> Publication:
        """Publish the learner's weights as the version that its updates so far make. Does not wait for generators.

        `average`: as the version after that, which no update makes.
        """
        version = self.buffer.updates // self.config.replay.updates_per_publish + average
        with self.progress.clock.spend("publishing"):
            publication = await self.learner.export(version)
            self.pool.offer(publication)
            return publication

    async def learn(self) -> None:
        """Consume batches until the last update or `stop`."""
        self.learning = True
        started, empty = time.monotonic(), 0
        while self.buffer.updates < self.config.updates and not self.stopped:
            batch = self.buffer.batch()
            # Taking a batch frees places, even if it only discarded stale groups.
            self.pool.changed.notify()
            if batch is None:
                with self.progress.clock.spend("waiting"):
                    await self.pool.changed.wait()
                continue
            empty = 0 if batch.groups else empty + 1
            if empty == MAX_EMPTY_UPDATES:
                raise RunError(
                    f"{empty} updates in a row had nothing to train on: every prompt was dropped, by reason "
                    f"{self.buffer.ledger()['dropped']}; look in the logs of judges and generators ({ray_logs()}), "
                    "then use --resume"
                )
            metrics = await self._update(batch)
            observed: dict[str, float] = {}
            if self.buffer.updates % self.config.replay.updates_per_publish == 0:
                observed = await self._observe(await self.publish())
            if metrics:
                self._events.on_update(self.progress, metrics | observed)
            self.progress.learning_seconds = time.monotonic() - started
            if (departure := self.divergence.take()) is not None:
                await self._events.on_departure(departure)
            await self._after_update()
        if self._evaluation is not None:
            # The next step either ends the generators that it waits for, or evaluates a later policy.
            self._evaluation.cancel()
            await asyncio.wait({self._evaluation})

    async def settled(self) -> int | None:
        """Return the lease at which the buffer can be cut without changing later rollouts, once all before are judged.

        That is the first lease of the learner's own version. None without a fixed schedule.
        """
        if not self.config.deterministic:
            return None
        replay = self.config.replay
        cut = min(self.buffer.updates + replay.max_staleness, self.config.updates) * replay.prompts_per_update
        while not self.buffer.settled(cut):
            await self.pool.changed.wait()
        return cut

    async def evaluate(self) -> None:
        """Judge fresh completions against the starting policy's, and measure KL to the reference on them."""
        if self.evaluation_set is not None:
            newest, progress = self.pool.newest, self.progress
            assert newest is not None
            found = await self.measure(newest)
            progress.win_rate, progress.reward, progress.kl = found.win_rate, found.reward, found.kl
            self.divergence.evaluation(found.kl or 0.0, newest.version * self.config.replay.updates_per_publish)

    async def measure(self, publication: Publication, *, aside: bool = False) -> Evaluated:
        """Evaluate the newest publication. `aside`: observers measure it too, and keep nothing of it."""
        found = Evaluated()
        if self.evaluation_set is not None:
            prompts, baseline = self.evaluation_set.prompts, self.evaluation_set.baseline
            groups = await self.sample(prompts)
            judged = await self._judge_all([win_rate.against(a, b) for a, b in zip(groups, baseline, strict=True)])
            self.judged = judged
            completions = flatten(groups)
            scored = await self.learner.score(
                [
                    (group.lease.prompt.token_ids, each.token_ids, each.given)
                    for group in groups
                    for each in group.completions
                ]
            )
            own: list[Sequence[float]] = [completion.sampled(completion.logprobs) for completion in completions]
            updates = self.buffer.updates
            held = updates // self.config.replay.updates_per_publish + aside
            # Earlier, the learner may have moved on.
            if updates == self.config.updates and publication.version == held:
                own = [policy for policy, _ in scored]
                self._note_gap(win_rate.largest_gap(completions, scored, held))
            missing = self.config.judging.missing_eos_score
            found = Evaluated.of(judged, missing, own, [reference for _, reference in scored])
        exact: dict[str, float] = {}
        for observer in self._observers if aside else ():
            exact |= await observer.aside(publication)
        return replace(found, exact=exact)

    async def sample(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Sample completions of `prompts` with the newest published version.

        Raises RunError if one of them could not be generated.
        """
        newest = self.pool.newest
        assert newest is not None
        answers = await self.pool.sample(prompts, min_version=newest.version)
        groups = [answer for answer in answers if isinstance(answer, Group)]
        for answer in answers:
            if isinstance(answer, Failure):
                raise RunError(
                    f"an evaluation prompt could not be generated: {answer.reason}; check the generators' logs, "
                    "raise replay.lease_seconds if they are only slow, then use --resume"
                )
        self.evaluation_tokens += sum(completion.sampled_tokens for completion in flatten(groups))
        return groups

    async def _update(self, batch: Batch) -> dict[str, float]:
        """Train on `batch`; return metrics, none if it is empty."""
        # Kept whatever becomes of the update: a batch that the learner fails on is worth inspecting.
        keeping = asyncio.ensure_future(self._events.on_batch(batch))
        try:
            metrics = await self._train(batch)
        except BaseException:
            await asyncio.gather(keeping, return_exceptions=True)  # the first error counts
            raise
        await keeping
        return metrics

    async def _train(self, batch: Batch) -> dict[str, float]:
        progress, consumed = self.progress, Consumed.of(batch, self.config)
        progress.consume(batch, consumed)
        for warning in progress.warnings(self.config):
            self._on_message(warning)
        if not consumed.items:
            return {}
        with progress.clock.spend("training"):
            stats = await self.learner.update(consumed.items, measure_step=self.limit.due(batch.update))
        progress.stats = stats
        progress.skipped += stats.skipped
        if told := self.limit.hear(batch.groups, consumed.items, stats.step_size, stats.lr):
            self._on_message(told)
        # Later updates of a version see a policy changed by the earlier ones.
        if max(batch.staleness) == 0 and batch.update % self.config.replay.updates_per_publish == 0:
            self._note_gap(stats.log_ratio_max)
        self.divergence.update(self.buffer.updates, figures_of(stats), consumed.items)
        outside = {"outside_band": float(self.divergence.updates_outside)}
        return batch_metrics(batch, consumed) | outside | progress.new_evaluation()

    def _note_gap(self, gap: float) -> None:
        """Keep the largest log-prob difference of vLLM and learner on a token; warn if it exceeds the tolerance, and
        again when it has doubled."""
        largest = self.progress.log_ratio_max = max(self.progress.log_ratio_max or 0.0, gap)
        if largest > self._warn_above:
            self._warn_above = 2.0 * largest
            generators, learner = self.config.generators, self.config.learner
            self._on_message(
                f"warning: vLLM and learner log-probs differ by {largest:.3g} nats on a token that both scored with "
                f"the same weights (tolerance {generators.log_prob_tolerance:g}); compare generators.dtype "
                f"{generators.dtype} with learner.dtype {learner.dtype}, or raise generators.canary_tolerance if the "
                "difference is rounding"
            )

    async def _observe(self, publication: Publication) -> dict[str, float]:
        """Let observers measure the policy that was just published; return their metrics."""
        metrics: dict[str, float] = {}
        with self.progress.clock.spend("evaluating"):
            for observer in self._observers:
                if observer.due(self.buffer.updates):
                    metrics |= await observer.observe(self.buffer.updates, publication)
        return metrics

    async def _after_update(self) -> None:
        every = self.config.checkpoints.every_updates
        # A run that may go back must not push out the last good checkpoint by those of a policy outside the band.
        doubtful = self.config.divergence.action == "rollback" and self.divergence.outside
        if every and self.buffer.updates % every == 0 and self.buffer.updates < self.config.updates and not doubtful:
            with self.progress.clock.spend("checkpointing"):
                await self._events.on_checkpoint(self)
        every = self.config.evaluation.every_updates
        if every and self.buffer.updates % every == 0 and self.buffer.updates < self.config.updates:
            self._start_evaluation()

    def _start_evaluation(self) -> None:
        """Evaluate in the background: neither learner nor generators stop for it; its failure ends the run."""
        if self._evaluation is not None and not self._evaluation.done():
            self._on_message(f"no evaluation after update {self.buffer.updates}: the previous one is still running")
            return
        assert self._tasks is not None
        self._evaluation = self._tasks.create_task(self.evaluate())

    async def _judge_all(self, groups: Sequence[Group]) -> list[Group]:
        """Return the groups with their judgements; leave out failed ones, with a message."""
        answers = await judge_all(self.judge, groups, self.config.judging, self._on_message)
        judged = [item for item in answers if not isinstance(item, Failure)]
        failures = [item for item in answers if isinstance(item, Failure)]
        if failures:
            text = f"{len(failures)} of {len(groups)} evaluation prompts could not be judged: {failures[0].reason}"
            if not judged:
                raise RunError(f"{text}; repair the judge, then use --resume")
            self._on_message(f"{text}; they are left out")
        return judged

    def _on_group(self, group: Group) -> None:
        """Queue a generated group for judging, or hold it until its opponents are drawn."""
        if self._scheduler is None:
            self._judging.put_nowait(group)
        else:
            self.buffer.hold(group.lease.index, group.lease.attempt)
            self._scheduler.hold(group)

    async def _draw_opponents(self, scheduler: OpponentScheduler) -> None:
        async with asyncio.TaskGroup() as draws:
            while True:
                # One task each, so that none waits for the slowest of them.
                for group, min_version in scheduler.due(self.buffer.version):
                    draws.create_task(self._complete(group, min_version))
                await self.pool.changed.wait()

    async def _complete(self, group: Group, min_version: int) -> None:
        """Add opponents to `group` and queue it for judging; return its lease if they cannot be drawn."""
        (drawn,) = await self.pool.sample([group.lease.prompt], min_version=min_version, draw="opponents")
        if isinstance(drawn, Failure):
            self.buffer.returned(group.lease.index, group.lease.attempt, f"opponents: {drawn.reason}")
            self.pool.changed.notify()
        elif self.buffer.release(group.lease.index, group.lease.attempt, time.monotonic()):
            self._judging.put_nowait(replace(group, completions=group.completions + drawn.completions))

    async def _judge(self) -> None:
        while True:
            groups = [await self._judging.get()]
            while len(groups) < self.config.judging.max_batch_groups and not self._judging.empty():
                groups.append(self._judging.get_nowait())
            for item in await self.judge.judge(groups):
                if isinstance(item, Failure):
                    self.buffer.returned(item.lease_index, item.attempt, item.reason)
                else:
                    self.buffer.add(item)
            self.pool.changed.notify()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.pool.expire()
            await self.refresh(STATUS_CALLS)
            self._events.on_watch(self)

    async def _retire(self) -> None:
        while True:
            await self.learner.retire(await self._retiring.get())
