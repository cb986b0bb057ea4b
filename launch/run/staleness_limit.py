"""Estimate a run's staleness limit: the largest age of opponents, or of pairs, at which training stays stable.

`learner/games/stability.py` computes it, for losses on pairs with `learner/games/best_and_worst.py`; this module feeds
them with the run's measurements and reports the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from actors.foreign.text import many
from actors.generation.config import OpponentConfig
from actors.records import Game, Group
from actors.replay_buffer.pairing import game_of
from launch.settings.run import RunConfig
from learner.losses.config import BestOfNLossConfig, GameLossConfig, PairLossConfig

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

PROBES = 8
"""Updates whose step size is measured before the limit is estimated; a single one is noisy."""
MEASURED_STEPS_EVERY = 10
"""After the first estimate, measure the step size every N updates: eight of them make another."""
TOLD_AGAIN = 2.0
"""Factor between an estimate and the one printed last from which it is printed again."""
CYCLE_FREQUENCY = 0.5 / math.sqrt(3.0)
"""omega of three answers that beat each other with certainty, sampled evenly: the fastest cycle of three."""


@dataclass(frozen=True, slots=True)
class StalenessLimit:
    """The limit with this run's numbers: an estimate."""

    tau: float
    beta: float
    step_size: float
    """eta: the learner's step in log-probs per unit of preference, at the peak learning rate."""
    frequency: float
    """omega of the sampled preferences of the prompts that cycle fastest (`stability.fastest_rotation`)."""
    largest_lag: float
    """Policy versions; infinite if nothing rotates, -1 if even opponents of the newest version are unstable."""
    bound: int
    """The run's bound on the opponents' staleness, in versions."""
    lowered_by: str = "learner.loss.opponent.max_staleness"  # the setting that lowers it
    error: str = ""  # which way the estimate errs, if that is known
    anchor_weight: float = 0.0
    anchor_horizon: int = 0  # optimizer steps
    pair_beta: float = 0.0
    """`learner.loss.beta` of a loss on pairs; tau is then the pull that it makes. 0 for losses on games."""
    holding_weight: float = 0.32  # of an anchor that holds at this rotation

    @property
    def kept(self) -> bool:
        return self.bound <= self.largest_lag

    def figures(self) -> dict[str, float]:
        """Return the numbers for `summary.json`, without an infinite lag and an anchor that is not there."""
        numbers = {name: value for name, value in asdict(self).items() if not isinstance(value, str)}
        absent = ["holding_weight"]
        absent += [] if self.anchor_weight else ["anchor_weight", "anchor_horizon"]
        absent += [] if self.pair_beta else ["pair_beta"]
        return {name: float(each) for name, each in numbers.items() if math.isfinite(each) and name not in absent}

    def describe(self) -> str:
        """Return one line for people."""
        unit = "version" if self.largest_lag == 1 else "versions"
        lag = "any lag" if math.isinf(self.largest_lag) else f"a lag of {self.largest_lag:.0f} {unit}"
        who = "pairs" if self.pair_beta else "opponents"
        pulls = _pulls(self.tau, self.beta, self.anchor_weight, self.anchor_horizon, self.pair_beta)
        given = (
            f"{pulls}, measured step size {self.step_size:.3g} and rotation "
            f"{self.frequency:.3g} of the tenth of the prompts that cycles fastest"
            + (f"; {self.error}" if self.error else "")
        )
        raised = "learner.loss.tau or learner.loss.opponent.beta" if self.beta else "learner.loss.tau"
        raised = "learner.loss.beta" if self.pair_beta else raised
        if not self.anchor_weight:
            raised += f", or set learner.anchor.weight to {self.holding_weight:g}"
        remedy = f"lower learner.optimizer.lr or replay.updates_per_publish, or raise {raised}"
        if self.largest_lag < 0:
            return (
                f"warning: staleness limit: even {who} of the newest version are unstable ({given}): the policy "
                f"may cycle; {remedy}"
            )
        lag += " as estimated" if self.kept else " only, as estimated"
        if self.kept:
            return f"staleness limit: {who} are stable up to {lag} ({given}); this run allows {self.bound}"
        return (
            f"warning: staleness limit: {who} are stable up to {lag} ({given}), and this run allows "
            f"{self.bound}: the policy may cycle; set {self.lowered_by} to {self.largest_lag:.0f}, {remedy}"
        )


def _pulls(tau: float, beta: float, weight: float = 0.0, horizon: int = 0, pair_beta: float = 0.0) -> str:
    anchor = f", anchor {weight:g} over {horizon} updates" if weight else ""
    return (f"beta {pair_beta:g}" if pair_beta else f"tau {tau:g}, beta {beta:g}") + anchor


def bound_of(config: RunConfig, opponent: OpponentConfig | None) -> int:
    """Return the policy versions that opponents may be old; without any, that pairs may be old."""
    fresh = None if opponent is None else opponent.max_staleness
    return config.replay.max_staleness if fresh is None else fresh


def lowered_by(config: RunConfig) -> str:
    """Name the setting that lowers `bound_of`: in ready order opponents are drawn with the players."""
    drawn_apart = config.opponent is not None and config.replay.order != "ready"
    return "learner.loss.opponent.max_staleness" if drawn_apart else "replay.max_staleness"


def beta_of(loss: GameLossConfig) -> float:
    """Return the reference's weight in the opponent as played: 0 for a mixture by weights that are turned off."""
    mixed = loss.opponent.needs_second_model or loss.weighs_opponents
    return loss.opponent.target_beta if mixed else 0.0


def loss_with_limit(config: RunConfig) -> GameLossConfig | PairLossConfig | None:
    """Return the run's loss if its limit can be estimated.

    Not if its opponent is an average of past policies, which has many ages; nor if it is on pairs that `_untold` names.
    """
    loss = config.learner.loss
    if isinstance(loss, PairLossConfig):
        return None if _untold(config) else loss
    return loss if isinstance(loss, GameLossConfig) and loss.opponent.kind != "ema" else None


def _untold(config: RunConfig) -> str:
    """Say why a loss on pairs gets no estimate; empty if it gets one."""
    loss = config.learner.loss
    if isinstance(loss, BestOfNLossConfig) or loss.kind == "slic":
        return (
            f"staleness limit: none is known for learner.loss.kind {loss.kind}, whose steps do not vanish at a fixed "
            "point; dpo and ipo have one"
        )
    if isinstance(loss, PairLossConfig) and config.sampling.completions_per_prompt < 3:
        return (
            "staleness limit: not estimated, because it takes three completions of a prompt to see preferences cycle; "
            "set sampling.completions_per_prompt to 3 or more"
        )
    return ""


SCORES_ONLY = (
    "staleness limit: none is needed for learner.loss.kind dpo with this judge: it scores, and a score cannot make "
    "preferences cycle"
)


def steps_of(versions: int, updates_per_publish: int) -> int:
    """Convert versions to learner steps between an opponent of that age and the last update that uses it."""
    return (versions + 1) * updates_per_publish - 1


def versions_of(steps: float, updates_per_publish: int) -> float:
    """Convert learner steps to the most policy versions within them; -1 if there is none."""
    return steps if math.isinf(steps) else float((steps + 1) // updates_per_publish - 1)


def announce(config: RunConfig) -> str:
    """Say before any measurement which step the run's bound allows if preferences cycle as fast as they can.

    For a loss on pairs only says why it gets no estimate; empty if it may get one, and for losses on scores.
    """
    from learner.games.stability import largest_anchored_step, largest_stable_step

    loss = loss_with_limit(config)
    if not isinstance(loss, GameLossConfig) and config.opponent is None:
        return _untold(config)
    if not isinstance(loss, GameLossConfig):
        return "staleness limit: none is known for learner.loss.opponent.kind ema, an average of policies of many ages"
    bound, beta = bound_of(config, loss.opponent), beta_of(loss)
    lag = steps_of(bound, config.replay.updates_per_publish)
    anchor, pulls = config.anchor, _pulls(loss.tau, beta)
    if anchor is None:
        step = largest_stable_step(loss.tau, beta, lag, CYCLE_FREQUENCY)
    else:
        pull = (anchor.weight, anchor.horizon)
        step = largest_anchored_step(loss.tau, beta, lag, CYCLE_FREQUENCY, pull)
        pulls = _pulls(loss.tau, beta, *pull)
    return (
        f"staleness limit: with {pulls} and opponents up to {many(bound, 'version')} old, steps up to "
        f"{step:.3g} per update are stable on a cycle of three; the step that learning rate "
        f"{config.learner.optimizer.lr:g} makes is measured over the first {PROBES} updates"
    )


@dataclass
class LimitProbe:
    """Collects step sizes and preferences of updates, and estimates the limit from every `PROBES` of them."""

    config: RunConfig
    _steps: list[float] = field(default_factory=list)
    _games: list[Game] = field(default_factory=list)
    limit: StalenessLimit | None = None  # the newest estimate
    _told: StalenessLimit | None = None
    _rotates: bool | None = None
    """True if the judge's preferences on pairs can cycle; None before the first batch."""

    def due(self, update: int) -> bool:
        """Return whether to measure the step of `update`: all until the first estimate, also after a resume.

        On pairs not the first one, whose judgements say whether there is anything to estimate.
        """
        loss = loss_with_limit(self.config)
        if loss is None:
            return self.config.opponent is not None and update % MEASURED_STEPS_EVERY == 0
        if isinstance(loss, PairLossConfig) and not self._rotates:
            return False
        return self.limit is None or update % MEASURED_STEPS_EVERY == 0

    def hear(self, groups: Sequence[Group], items: Sequence[object], step_size: float | None, lr: float) -> str | None:
        """Add an update on `groups`, its `items` as the loss consumed them; return a text to print, or None."""
        loss = loss_with_limit(self.config)
        games = [item for item in items if isinstance(item, Game)]
        if isinstance(loss, PairLossConfig):
            if self._rotates is None:
                compared = any(group.judgement and group.judgement.preferences is not None for group in groups)
                self._rotates = compared or loss.kind == "ipo" or loss.label_smoothing > 0.0
                return None if self._rotates else SCORES_ONLY
            if step_size is None:
                return None
            games = [game_of(group, self.config.judging.missing_eos_score) for group in groups]
        limit = self.add(games, step_size, lr) if games else None
        return None if limit is None else limit.describe()

    def add(self, games: Sequence[Game], step_size: float | None, lr: float) -> StalenessLimit | None:
        """Add an update; return an estimate that is worth printing: the first one, and later ones that differ from it.

        `step_size` was measured at learning rate `lr`; it is scaled to the peak rate.
        """
        loss = loss_with_limit(self.config)
        if loss is None or step_size is None or not math.isfinite(step_size) or lr <= 0.0:
            return None
        self._steps.append(step_size * self.config.learner.optimizer.lr / lr)
        self._games += games
        if len(self._steps) < PROBES:
            return None
        limit = self.limit = _limit(self.config, loss, self._steps, self._games)
        self._steps, self._games = [], []
        if self._told is not None and not _differs(limit, self._told):
            return None
        self._told = limit
        return limit


def _differs(limit: StalenessLimit, told: StalenessLimit) -> bool:
    """Return whether the bound is kept by one alone, or the lags differ by the factor `TOLD_AGAIN`."""
    one, other = (max(each.largest_lag, 0.0) + 1.0 for each in (limit, told))
    if math.isinf(one) or math.isinf(other):
        return limit.kept != told.kept
    return limit.kept != told.kept or max(one, other) >= TOLD_AGAIN * min(one, other)


def _limit(
    config: RunConfig, loss: GameLossConfig | PairLossConfig, steps: Sequence[float], games: Sequence[Game]
) -> StalenessLimit:
    import numpy as np

    from learner.games.stability import largest_anchored_lag, largest_stable_lag

    # A cycle takes three: with two players, their opponents count as well.
    players = len(games[0].players) if len(games[0].players) > 2 else None
    tables = np.array([game.preferences for game in games])[:, :players, :players]
    numbers = {tokens: number for number, tokens in enumerate({tuple(game.prompt_token_ids) for game in games})}
    forces = _forces(loss, tables, [numbers[tuple(game.prompt_token_ids)] for game in games])
    step_size, anchor = float(np.median(steps)), config.anchor
    weight, horizon = (0.0, 0) if anchor is None else (anchor.weight, anchor.horizon)
    if step_size <= 0.0:
        lag = math.inf
    elif anchor is not None:
        pull = (forces.slope * weight, horizon)
        lag = largest_anchored_lag(forces.tau, forces.beta, step_size, forces.frequency, pull)
    elif step_size * forces.tau > 1.0:  # such steps overshoot, whatever the opponent's age
        lag = -1.0
    else:
        lag = largest_stable_lag(forces.tau, forces.beta, step_size, forces.frequency)
    error = ""
    if np.isin(tables, (0.0, 0.5, 1.0)).all() and (tables != 0.5).any():
        error = "the judge says 0 or 1, which adds rotation, so the lag is too short unless it is certain"
    elif tables.shape[1] < 6:
        error = "the noise of fewer than 6 completions is in it, so the lag is rather too short"
    elif isinstance(loss, PairLossConfig):
        error = "pairs of best and worst bear more than the law says, so the lag is rather too short"
    return StalenessLimit(
        tau=forces.tau,
        beta=forces.beta,
        step_size=step_size,
        frequency=forces.frequency,
        largest_lag=versions_of(lag, config.replay.updates_per_publish),
        bound=bound_of(config, loss.opponent),
        lowered_by=lowered_by(config),
        error=error,
        anchor_weight=weight,
        anchor_horizon=horizon,
        pair_beta=loss.beta if isinstance(loss, PairLossConfig) else 0.0,
        holding_weight=forces.holding_weight,
    )


@dataclass(frozen=True, slots=True)
class _Forces:
    """Forces on a policy near its rest, one that holds and one that turns it, in preferences."""

    tau: float
    beta: float  # of the mixture
    frequency: float  # omega
    slope: float = 1.0
    """Pull per unit of the anchor's weight."""

    @property
    def holding_weight(self) -> float:
        """The weight at which tau and anchor exceed the rotation: 0.32 for any game, rounded up for pairs."""
        return 0.32 if self.slope == 1.0 else math.ceil(100.0 * max(0.0, self.frequency - self.tau) / self.slope) / 100


def _forces(loss: GameLossConfig | PairLossConfig, tables: NDArray[float64], prompts: Sequence[int]) -> _Forces:
    """Estimate them from preferences [g, k, k] among completions of `prompts` [g]."""
    from learner.games.best_and_worst import labels, pull, unexplained
    from learner.games.stability import fastest_rotation

    if isinstance(loss, GameLossConfig):
        return _Forces(loss.tau, beta_of(loss), fastest_rotation(tables, prompts))
    assert loss.kind != "slic"
    kind, smoothing, slope = loss.kind, loss.label_smoothing, pull(loss.kind, 1.0, tables.shape[1])
    frequency = fastest_rotation(tables, prompts, measure=lambda part: unexplained(labels(part, smoothing), kind))
    return _Forces(slope * loss.beta, 0.0, frequency, slope)
