"""Turns the loop's state into snapshots for the board and the summary at the end. Changes nothing in the loop."""

import time
from collections import deque

from launch.output.board import RunSnapshot
from launch.output.run_directory import RunDirectory
from launch.output.session import Status
from launch.output.summary import Staleness, Summary
from launch.run.loop import TrainingLoop
from launch.run.pools.judge_pool import JudgePool
from launch.run.pools.reference_pool import ReferencePool
from launch.run.protocols import RunPlugin
from launch.settings.run import RunConfig

RATE_SECONDS = 20.0  # window of the board's rates


class Reporter:
    """Describes one run."""

    def __init__(self, config: RunConfig, run: RunDirectory, plugin: RunPlugin, prompts: int | None = None) -> None:
        self._config, self._run, self._plugin, self._prompts = config, run, plugin, prompts
        self._started = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque()
        self._judging_seconds = 0.0
        self._judging_figures: dict[str, float] = {}
        self._scoring_seconds: float | None = None  # of reference actors

    def snapshot(self, loop: TrainingLoop) -> RunSnapshot:
        """Describe the run as it is now."""
        now, progress, buffer = time.monotonic(), loop.progress, loop.buffer
        sampled = sum(status.tokens for status in loop.pool.accounts)
        self._history.append((now, sampled, progress.groups))
        while now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        then, tokens, groups = self._history[0]
        seconds = max(now - then, 1e-9)
        stats, rate = progress.stats, progress.win_rate
        return RunSnapshot(
            elapsed_seconds=now - self._started,
            version=buffer.version,
            updates=buffer.updates,
            total_updates=self._config.updates,
            tokens_per_second=(self._history[-1][1] - tokens) / seconds,
            groups_per_second=(progress.groups - groups) / seconds,
            generators=loop.pool.statuses,
            ages=tuple(buffer.ages()),
            max_staleness=self._config.replay.max_staleness,
            buffered=buffer.buffered,
            in_flight=buffer.in_flight,
            learner_state=progress.clock.state,
            learner_seconds=dict(progress.clock.seconds),
            loss=None if stats is None else stats.loss,
            accuracy=None if stats is None else stats.accuracy,
            kl=progress.kl,
            log_ratio_max=None if stats is None else stats.log_ratio_max,
            win_rate=None if rate is None else rate.value,
            win_rate_interval=None if rate is None or rate.low is None or rate.high is None else (rate.low, rate.high),
            dropped=buffer.ledger()["dropped"],
            tie_share=progress.tie_share,
            epochs=self._epochs(buffer.updates),
            outside=tuple(f"{each.figure} {each.value:.4g}" for each in loop.divergence.outside),
            ended_generators=len(loop.pool.accounts) - len(loop.pool.statuses),
        )

    def _epochs(self, updates: int) -> float | None:
        """Return how often `updates` updates went over the prompts; None if their number is not known."""
        return updates * self._config.replay.prompts_per_update / self._prompts if self._prompts else None

    async def ask(self, judge: JudgePool, reference: ReferencePool | None = None) -> None:
        """Record the counters of judges and reference actors, while they are alive."""
        self._judging_seconds = await judge.seconds()
        self._judging_figures = await judge.figures()
        self._scoring_seconds = None if reference is None else await reference.seconds()

    def summary(self, loop: TrainingLoop, *, status: Status, error: str | None) -> Summary:
        """Describe the run as it ended."""
        config, progress, buffer = self._config, loop.progress, loop.buffer
        drawn = config.opponent if config.opponent is not None and config.opponent.sampled else None
        statuses = loop.pool.accounts
        sampled = sum(status.tokens for status in statuses)
        seconds = max(progress.learning_seconds, 1e-9)
        return Summary(
            status=status,
            error=error,
            name=config.name,
            output=str(self._run.path),
            updates=buffer.updates,
            version=buffer.version,
            wall_seconds=time.monotonic() - self._started,
            max_staleness_bound=config.replay.max_staleness,
            staleness=Staleness.of(progress.staleness),
            groups_per_second=progress.groups / seconds,
            tokens_per_second=progress.tokens / seconds,
            time_budget={
                "generator": {
                    "generating": sum(status.generating_seconds for status in statuses),
                    "updating": sum(status.updating_seconds for status in statuses),
                    "idle": sum(status.idle_seconds for status in statuses),
                },
                "learner": dict(progress.clock.seconds),
                "judge": {"judging": self._judging_seconds},
                **({} if self._scoring_seconds is None else {"reference": {"scoring": self._scoring_seconds}}),
            },
            dropped_tokens=max(0, sampled - progress.tokens - loop.evaluation_tokens),
            unfinished_won=progress.unfinished_won,
            mixed_groups=progress.mixed_groups,
            ties=progress.ties,
            tie_share=progress.tie_share,
            prompts=self._prompts,
            epochs=self._epochs(buffer.updates),
            skipped_updates=progress.skipped,
            ledger=buffer.ledger(),
            judge=config.judging.judge.kind,
            judging=self._judging_figures,
            opponent=self._plugin.opponent_name,
            loss=config.learner.loss.kind,
            opponent_bound=None if drawn is None else drawn.max_staleness,
            opponent_staleness=None if drawn is None else Staleness.of(progress.opponent_staleness),
            staleness_law=None if loop.limit.limit is None else loop.limit.limit.figures(),
            **self._plugin.summary(buffer.updates),
            win_rate=progress.win_rate,
            reward=progress.reward,
            kl=progress.kl,
            average=progress.average,
            log_ratio_max=progress.log_ratio_max,
        )
