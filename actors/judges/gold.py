"""The embedded world's closed-form preference as a judge. It must not know how the world is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from actors.records import Group, Judgement
from actors.replay_buffer.pairing import mean_win_probabilities


class GoldJudge:
    """Scores of the world where it has them; else its pairwise preferences, and the mean preference as score."""

    def __init__(self, task: str, seed: int) -> None:
        from actors.world import World

        self._world = World(cast(Any, task), seed)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Exact judgements; microseconds each, so the event loop is not left."""
        return [self._judge_one(group) for group in groups]

    def _judge_one(self, group: Group) -> Judgement:
        prompt = group.lease.prompt
        scores = self._world.scores(prompt, group.completions)
        if scores is not None:
            return Judgement(scores=scores)
        preferences = self._world.preferences(prompt, group.completions)
        return Judgement(scores=mean_win_probabilities(preferences), preferences=preferences)
