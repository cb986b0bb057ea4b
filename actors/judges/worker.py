"""A judge at work: one judge, its retries and its clock. It must not know the buffer or who consumes its judgements."""

from __future__ import annotations

import time
from collections.abc import Sequence

from actors.judges import MeasuredJudge, make_judge
from actors.judges.config import JudgingConfig
from actors.judges.retrying import judge_with_retries
from actors.records import Failure, Group


class JudgeWorker:
    """Judges batches of groups; a group that cannot be judged comes back as a `Failure`, never with a made-up score."""

    def __init__(
        self, config: JudgingConfig, *, task: str = "transitive", seed: int = 0, tokenizer: str | None = None
    ) -> None:
        self._config = config
        self._judge = make_judge(config.judge, task=task, seed=seed, tokenizer=tokenizer)
        self._seconds = 0.0
        self._counts = dict.fromkeys(("groups", "failed_groups"), 0.0)

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        """Judgements of `groups`, in order.

        Returns:
            Each group with its judgement, or a `Failure` with the reason after the configured retries.
        """
        started = time.monotonic()
        try:
            answers = await judge_with_retries(self._judge, groups, self._config)
            self._counts["groups"] += len(answers)
            self._counts["failed_groups"] += sum(isinstance(answer, Failure) for answer in answers)
            return answers
        finally:
            self._seconds += time.monotonic() - started

    async def seconds(self) -> float:
        """Seconds spent judging since the start."""
        return self._seconds

    async def figures(self) -> dict[str, float]:
        """What was judged since the start: `groups`, `failed_groups` among them, and what the judge itself counts."""
        measured = self._judge.metrics() if isinstance(self._judge, MeasuredJudge) else {}
        return self._counts | measured
