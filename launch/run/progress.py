"""What a run has done so far, and where its learner's time went. It must not know who asks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from actors.records import flatten
from actors.replay_buffer.buffer import Batch
from launch.run import win_rate as evaluation
from launch.run.consumption import Consumed


@dataclass
class LearnerClock:
    """Where the learner's wall time went, in seconds; `state` is what it does now."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("training", "waiting", "publishing", "checkpointing", "evaluating"), 0.0)
    )
    state: str = "waiting"

    @contextlib.contextmanager
    def spend(self, state: str) -> Iterator[None]:
        previous, self.state = self.state, state
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[state] += time.monotonic() - started
            self.state = previous


@dataclass
class Progress:
    """What the run has done so far; the board, the metrics and the summary read it."""

    clock: LearnerClock = field(default_factory=LearnerClock)
    staleness: dict[int, int] = field(default_factory=dict)
    """Groups consumed at each staleness of the policy's completions."""
    opponent_staleness: dict[int, int] = field(default_factory=dict)
    """Groups consumed at each staleness of their opponents; empty where the loss has none."""
    groups: int = 0
    tokens: int = 0
    """Response tokens of the groups consumed, all completions."""
    ties: int = 0
    skipped: int = 0
    stats: Any = None
    """The last update's `learner.training.engine.UpdateStats`."""
    log_ratio_max: float | None = None
    """Largest |log policy - log behaviour| of a token that met the very weights it was sampled with: the engines' gap.
    None while there was none."""
    win_rate: evaluation.WinRate | None = None
    reward: evaluation.Reward | None = None
    kl: float | None = None
    _reported: evaluation.WinRate | None = None
    learning_seconds: float = 0.0
    """Wall time between the start of the first update's wait and the end of the last update."""

    def consume(self, batch: Batch, consumed: Consumed) -> None:
        """Counts what one update consumes."""
        for ages, histogram in (
            (consumed.staleness, self.staleness),
            (consumed.opponent_staleness, self.opponent_staleness),
        ):
            for age in ages:
                histogram[age] = histogram.get(age, 0) + 1
        self.groups += len(batch.groups)
        self.tokens += sum(len(completion.token_ids) for completion in flatten(batch.groups))
        self.ties += consumed.ties

    def new_evaluation(self) -> dict[str, float]:
        """Metrics of an evaluation that ended since the last call; empty when none did."""
        rate, kl = self.win_rate, self.kl
        if rate is None or kl is None or rate is self._reported:
            return {}
        self._reported = rate
        values = {"win_rate": rate.value, "win_rate_low": rate.low, "win_rate_high": rate.high, "kl": kl}
        return values | ({} if self.reward is None else {"reward": self.reward.value})
