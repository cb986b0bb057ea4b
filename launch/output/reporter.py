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
from learner.records import UpdateStats

RATE_SECONDS = 20.0  # window of the board's rates


def written(value: float | None, form: str) -> str | None:
    """Write a figure that is known; `z` writes what rounds to zero without a sign."""
    return None if value is None else format(value, f"z{form}")


def kl_of(stats: UpdateStats, evaluated: float | None) -> float | None:
    """Return the newest estimate of KL to the reference: of the update's own completions, if its loss has it.

    Of pairs the mean over chosen and rejected.
    """
    if stats.kl_players is not None:
        return stats.kl_players
    if stats.kl_chosen is not None and stats.kl_rejected is not None:
        return (stats.kl_chosen + stats.kl_rejected) / 2.0
    return evaluated


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
            scores=self._scores(loop),
            dropped=buffer.ledger()["dropped"],
            outside=tuple(f"{each.figure} {each.value:.4g}" for each in loop.divergence.outside),
            ended_generators=len(loop.pool.accounts) - len(loop.pool.statuses),
            seconds_left=progress.seconds_left(max(0, self._config.updates - buffer.updates)),
        )

    def _scores(self, loop: TrainingLoop) -> dict[str, str | None]:
        """Write the figures that this run's loss and judge are about."""
        progress, newest, rate = loop.progress, loop.progress.stats, loop.progress.win_rate
        # A batch of ties has a loss, and nothing else of it was measured: its means are 0.
        stats = None if newest is None or 0 < newest.pairs == newest.ties else newest

        def of_update(name: str, form: str = ".3f") -> str | None:
            return None if stats is None else written(getattr(stats, name), form)

        scores = {"loss": None if newest is None else written(newest.loss, ".4f")}
        if self._config.opponent is not None:
            scores["preference"] = of_update("player_preference")
        else:
            scores["reward"] = written(progress.score, ".3f")
        if self._config.learner.loss.on_pairs:
            scores["accuracy"] = of_update("accuracy")
        scores |= {name: written(value, ".3f") for name, value in self._plugin.scores().items()}
        scores["KL"] = written(progress.kl if stats is None else kl_of(stats, progress.kl), ".2f")
        scores["max log-ratio"] = of_update("log_ratio_max")
        scores["win rate"] = None if rate is None else written(rate.value, ".3f")
        if rate is not None and rate.low is not None and rate.high is not None:
            scores["win rate"] = f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
        known = {
            "ties": written(progress.tie_share, ".0%"),
            "epochs": written(self._epochs(loop.buffer.updates), ".2f"),
        }
        return scores | {name: text for name, text in known.items() if text is not None}

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
