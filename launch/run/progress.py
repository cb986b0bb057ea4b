"""Account of a run: the data of an update, the progress so far, and the learner's time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from actors.errors import RunError
from actors.foreign.text import many
from actors.records import Game, Pair, flatten
from actors.replay_buffer.buffer import Batch
from actors.replay_buffer.pairing import best_and_worst, game_of, unfinished_won
from launch.run.evaluation import Evaluated
from launch.run.win_rate import Reward, WinRate
from launch.settings.run import RunConfig
from learner.records import UpdateStats

ENOUGH_MIXED_GROUPS = 50
"""Groups with finished and unfinished completions before the run says that unfinished ones win too often."""
TOO_OFTEN = 0.05
ENOUGH_COMPLETIONS = 200
"""Completions before the run says that almost none of them ends."""
SELDOM = 0.05


@dataclass(frozen=True)
class Consumed:
    """One update's groups as its loss consumes them, with their staleness in policy versions."""

    items: Sequence[Pair] | Sequence[Game]
    staleness: tuple[int, ...]  # of the policy's completions
    opponent_staleness: tuple[int, ...] = ()
    """Staleness of the opponents; empty if the loss has none."""
    unfinished_won: tuple[bool, ...] = ()
    """True if an unfinished completion has the best score, for each group that also has finished ones."""

    @classmethod
    def of(cls, batch: Batch, config: RunConfig) -> Consumed:
        """Make the pairs or games of `batch`.

        Raises RunError if one exceeds its staleness bound, or its judgement is unusable.
        """
        loss, missing = config.learner.loss, config.judging.missing_eos_score
        if loss.on_pairs:
            consumed = cls([best_and_worst(group, missing) for group in batch.groups], batch.staleness)
        else:
            games = [game_of(group, missing) for group in batch.groups]
            opponents: tuple[int, ...] = ()
            if config.opponent is not None:
                opponents = tuple(game.opponent_staleness(batch.version) for game in games)
            consumed = cls(games, tuple(game.staleness(batch.version) for game in games), opponents)
        mixed = [won for group in batch.groups if (won := unfinished_won(group, missing)) is not None]
        consumed = replace(consumed, unfinished_won=tuple(mixed))
        # Over all completions of a group, opponents included.
        _check_bound("a group", batch.staleness, "replay.max_staleness", config.replay.max_staleness)
        if config.opponent is not None and config.opponent.max_staleness is not None:
            setting, bound = "learner.loss.opponent.max_staleness", config.opponent.max_staleness
            _check_bound("an opponent", consumed.opponent_staleness, setting, bound)
        return consumed

    @property
    def ties(self) -> int:
        """Count pairs that carry no gradient; games have no ties."""
        return sum(isinstance(item, Pair) and item.tie for item in self.items)


def _check_bound(what: str, staleness: Sequence[int], setting: str, bound: int) -> None:
    worst = max(staleness, default=0)
    if worst > bound:
        raise RunError(f"{what} of staleness {worst} reached the learner, over {setting} {bound}")


def batch_metrics(batch: Batch, consumed: Consumed) -> dict[str, float]:
    """Describe one update's data for `metrics.jsonl`; docs/outputs.md has the units."""
    completions = flatten(batch.groups)
    metrics = {
        "staleness_max": max(consumed.staleness),
        "staleness_mean": sum(consumed.staleness) / len(consumed.staleness),
        "completion_tokens_mean": sum(len(completion.token_ids) for completion in completions) / len(completions),
        "finished_share": sum(completion.finished for completion in completions) / len(completions),
        "score_mean": _mean_score(batch),
    }
    if isinstance(consumed.items[0], Pair):
        metrics["tie_share"] = consumed.ties / len(consumed.items)
    if consumed.unfinished_won:
        metrics["unfinished_won_share"] = sum(consumed.unfinished_won) / len(consumed.unfinished_won)
    ages = consumed.opponent_staleness
    if ages:
        metrics |= {"opponent_staleness_max": max(ages), "opponent_staleness_mean": sum(ages) / len(ages)}
    return metrics


def _mean_score(batch: Batch) -> float:
    scores = [score for group in batch.groups if group.judgement for score in group.judgement.scores]
    return sum(scores) / len(scores)


@dataclass
class LearnerClock:
    """The learner's wall time by activity (seconds); `state` is the current one."""

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
    """Progress of a run; read by the board, the metrics and the summary."""

    clock: LearnerClock = field(default_factory=LearnerClock)
    staleness: dict[int, int] = field(default_factory=dict)
    """Groups consumed at each staleness of the policy's completions."""
    opponent_staleness: dict[int, int] = field(default_factory=dict)
    """Groups consumed at each staleness of their opponents; empty if the loss has none."""
    groups: int = 0
    tokens: int = 0  # sampled tokens of the groups consumed, all completions
    pairs: int = 0
    ties: int = 0  # of these
    mixed_groups: int = 0  # with finished and unfinished completions
    unfinished_won: int = 0  # mixed groups in which an unfinished completion has the best score
    completions: int = 0
    finished: int = 0  # of these
    skipped: int = 0
    updates: int = 0  # that this process made
    score: float | None = None
    """The judge's mean score of the newest update's completions."""
    stats: UpdateStats | None = None  # of the last update
    log_ratio_max: float | None = None
    """Largest |log policy - log behaviour| of a token scored with the weights that sampled it: the gap between vLLM and
    learner (nats). None if there was no such token."""
    win_rate: WinRate | None = None
    reward: Reward | None = None
    kl: float | None = None
    average: Evaluated | None = None  # of the mean of the last weights
    _reported: WinRate | None = None
    _warned: bool = False
    _told_cut: bool = False
    learning_seconds: float = 0.0
    """Wall time from the wait for the first update to the end of the last one."""

    @property
    def tie_share(self) -> float | None:
        """Share of the pairs that were ties; None before the first pair, and for losses on games."""
        return self.ties / self.pairs if self.pairs else None

    def seconds_left(self, updates: int) -> float | None:
        """Estimate the seconds of `updates` more updates at the mean pace so far.

        None before the first update, and after the last one, when only an evaluation is left.
        """
        if not (updates and self.updates and self.learning_seconds):
            return None
        return updates * self.learning_seconds / self.updates

    def consume(self, batch: Batch, consumed: Consumed) -> None:
        """Count what one update consumes."""
        for ages, histogram in (
            (consumed.staleness, self.staleness),
            (consumed.opponent_staleness, self.opponent_staleness),
        ):
            for age in ages:
                histogram[age] = histogram.get(age, 0) + 1
        self.groups += len(batch.groups)
        self.updates += 1
        if batch.groups:
            self.score = _mean_score(batch)
        completions = flatten(batch.groups)
        self.tokens += sum(completion.sampled_tokens for completion in completions)
        self.completions += len(completions)
        self.finished += sum(completion.finished for completion in completions)
        self.pairs += sum(isinstance(item, Pair) for item in consumed.items)
        self.ties += consumed.ties
        self.mixed_groups += len(consumed.unfinished_won)
        self.unfinished_won += sum(consumed.unfinished_won)

    def warnings(self, config: RunConfig) -> list[str]:
        """Return the warnings on completions that are due; each is given once."""
        found = (
            self.unfinished_warning(config.judging.missing_eos_score),
            self.cut_warning(config.sampling.max_new_tokens),
        )
        return [warning for warning in found if warning]

    def cut_warning(self, most: int) -> str | None:
        """Say, once, that almost no completion ends; `most` is sampling.max_new_tokens."""
        if self._told_cut or self.completions < ENOUGH_COMPLETIONS or self.finished >= SELDOM * self.completions:
            return None
        self._told_cut = True
        return (
            f"warning: only {self.finished} of {many(self.completions, 'completion')} ended by themselves, and the "
            f"others were cut off; sampling.max_new_tokens is {most}: raise it, or have the prompt ask for shorter "
            "answers"
        )

    def unfinished_warning(self, setting: object) -> str | None:
        """Say, once, that unfinished completions win too often; `setting` is judging.missing_eos_score."""
        often = self.mixed_groups >= ENOUGH_MIXED_GROUPS and self.unfinished_won > TOO_OFTEN * self.mixed_groups
        if self._warned or not often:
            return None
        self._warned = True
        return (
            f"warning: an unfinished completion has the best score in {self.unfinished_won} of {self.mixed_groups} "
            "groups that have finished ones too, and the policy learns not to stop; judging.missing_eos_score is "
            f"{'null' if setting is None else setting}, and below_finished ranks them last"
        )

    def new_evaluation(self) -> dict[str, float]:
        """Return the metrics of an evaluation that ended since the last call; empty if none did."""
        rate, kl = self.win_rate, self.kl
        if rate is None or kl is None or rate is self._reported:
            return {}
        self._reported = rate
        values = {"win_rate": rate.value, "kl": kl}
        if rate.low is not None and rate.high is not None:
            values |= {"win_rate_low": rate.low, "win_rate_high": rate.high}
        return values | ({} if self.reward is None else {"reward": self.reward.value})
