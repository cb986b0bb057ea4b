"""Turns the loop's state into what is shown and written: snapshots for the board, the summary for the end.

Reads the loop and the generators' own accounts; must not change either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from actors.settings import WORLD
from actors.world import POLICY_SETTINGS_FILE
from launch.output.board import RunSnapshot
from launch.output.run_directory import RunDirectory
from launch.output.summary import Staleness, Summary
from launch.run.loop import TrainingLoop
from launch.settings.run import RunConfig

Status = Literal["completed", "interrupted", "failed"]

RATE_SECONDS = 20.0
"""The board's rates are over this much of the past."""


class Reporter:
    """Watches one run."""

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        self._config = config
        self._run = run
        self._started = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque()
        self._opponent = "the SFT policy" if _starts_from_sft(config) else "the starting policy"
        self.sft_seconds = 0.0

    def snapshot(self, loop: TrainingLoop) -> RunSnapshot:
        """The run as it is now."""
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
            loss=stats and stats.loss,
            accuracy=stats and stats.accuracy,
            kl=progress.kl,
            log_ratio_max=stats and stats.log_ratio_max,
            win_rate=None if rate is None else rate.value,
            win_rate_interval=None if rate is None else (rate.low, rate.high),
            dropped=buffer.ledger()["dropped"],
        )

    def _exact(self, loop: TrainingLoop) -> dict[str, Any]:
        if loop.exact is None or not loop.exact.history:
            return {}
        last = loop.exact.history[-1]
        return {
            "exploitability": last.exploitability,
            "exploitability_tail": loop.exact.tail(loop.buffer.updates),
            "exact_kl": last.exact_kl,
            "preference": last.preference,
            "family_shares": last.family_shares,
        }

    def summary(
        self,
        loop: TrainingLoop,
        *,
        judging_seconds: float,
        status: Status,
        error: str | None,
        judging_figures: Mapping[str, float] | None = None,
    ) -> Summary:
        """The run as it ended."""
        config, progress, buffer = self._config, loop.progress, loop.buffer
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
            sft_seconds=self.sft_seconds,
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
                "judge": {"judging": judging_seconds},
            },
            dropped_tokens=max(0, sampled - progress.tokens - loop.evaluation_tokens),
            ties=progress.ties,
            skipped_updates=progress.skipped,
            ledger=buffer.ledger(),
            judge=config.judging.judge.kind,
            judging=dict(judging_figures or {}),
            opponent=self._opponent,
            loss=config.learner.loss.kind,
            opponent_bound=config.opponent.max_staleness if config.opponent_drawn.sampled else None,
            opponent_staleness=Staleness.of(progress.opponent_staleness) if config.opponent_drawn.sampled else None,
            staleness_law=None if loop.law.law is None else loop.law.law.figures(),
            **self._exact(loop),
            win_rate=progress.win_rate,
            reward=progress.reward,
            kl=progress.kl,
            log_ratio_max=progress.log_ratio_max,
        )


def _starts_from_sft(config: RunConfig) -> bool:
    """Whether the run's start is the embedded world's own policy, trained by this run or by an earlier one."""
    return config.model.path == WORLD or (Path(config.model.path) / POLICY_SETTINGS_FILE).is_file()
