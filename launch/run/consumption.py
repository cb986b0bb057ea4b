"""What one update consumes: pairs or games of its batch, checked once more against their bounds. Pure.

It must not know generators, judges or the learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import RunError
from actors.records import Game, Pair, flatten
from actors.replay_buffer.buffer import Batch
from actors.replay_buffer.pairing import best_and_worst, game_of
from launch.settings.run import RunConfig


@dataclass(frozen=True)
class Consumed:
    """One update's groups as its loss consumes them, with the age of each in policy versions."""

    items: Sequence[Pair] | Sequence[Game]
    staleness: tuple[int, ...]
    """Of the policy's completions."""
    opponent_staleness: tuple[int, ...] = ()
    """Of the opponents; empty where the loss has none."""

    @classmethod
    def of(cls, batch: Batch, config: RunConfig) -> Consumed:
        """The pairs or games of `batch`.

        Raises:
            RunError: one is over its staleness bound, or its judgement is unusable.
        """
        loss, missing = config.learner.loss, config.judging.missing_eos_score
        if loss.on_pairs:
            consumed = cls([best_and_worst(group, missing) for group in batch.groups], batch.staleness)
        else:
            games = [game_of(group, missing) for group in batch.groups]
            opponents = tuple(game.opponent_staleness(batch.version) for game in games) if loss.has_opponent else ()
            consumed = cls(games, tuple(game.staleness(batch.version) for game in games), opponents)
        # Over all completions of a group: none may be over the bound.
        _check_bound("a group", batch.staleness, "replay.max_staleness", config.replay.max_staleness)
        bound = config.opponent_drawn.max_staleness
        if bound is not None:
            _check_bound("an opponent", consumed.opponent_staleness, "opponent.max_staleness", bound)
        return consumed

    @property
    def ties(self) -> int:
        """Pairs that carry no gradient; games have no ties."""
        return sum(isinstance(item, Pair) and item.tie for item in self.items)


def _check_bound(what: str, staleness: Sequence[int], setting: str, bound: int) -> None:
    worst = max(staleness, default=0)
    if worst > bound:
        raise RunError(f"{what} of staleness {worst} reached the learner, over {setting} {bound}")


def batch_metrics(batch: Batch, consumed: Consumed) -> dict[str, float]:
    """What `metrics.jsonl` says of one update's data; docs/outputs.md has the units."""
    completions = flatten(batch.groups)
    scores = [score for group in batch.groups if group.judgement for score in group.judgement.scores]
    metrics = {
        "staleness_max": max(consumed.staleness),
        "staleness_mean": sum(consumed.staleness) / len(consumed.staleness),
        "completion_tokens_mean": sum(len(completion.token_ids) for completion in completions) / len(completions),
        "finished_share": sum(completion.finished for completion in completions) / len(completions),
        "score_mean": sum(scores) / len(scores),
    }
    if isinstance(consumed.items[0], Pair):
        metrics["tie_share"] = consumed.ties / len(consumed.items)
    ages = consumed.opponent_staleness
    if ages:
        metrics |= {"opponent_staleness_max": max(ages), "opponent_staleness_mean": sum(ages) / len(ages)}
    return metrics
