"""What the learner reports to the driver: plain Python values, so that unpickling needs neither torch nor deepspeed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """One optimizer step over one batch. Made by `TrainEngine.update`, alike on all ranks; read by the driver.

    Everything is under the policy as it was before the step. In losses on pairs, means over pairs leave ties out,
    except `loss`, and means over tokens cover both completions of the other pairs; with ties alone those means are 0.
    In losses on games, means over tokens cover the players, and the fields of games are means over games. Fields that
    the loss does not have are None.
    """

    update: int
    """Number of this update, from 1; skipped ones count."""
    loss: float
    """Mean over all pairs or games; a tie adds the loss of h = 0."""
    grad_norm: float
    """Euclidean norm before clipping; `inf` when it was not finite."""
    lr: float
    log_ratio_max: float
    """Largest |log pi - log b| of a token, nats; b is the distribution that sampled it."""
    log_ratio_mean: float
    """Mean |log pi - log b| per token, nats."""
    behaviour_kl: float
    """Estimate of KL(b || pi) per token, nats: mean of r - 1 - log r with r = pi / b (Schulman 2020's k3)."""
    pairs: int = 0
    """Pairs in the batch, ties included."""
    ties: int = 0
    games: int = 0
    """Games in the batch."""
    tokens: int
    """Tokens of prompts and completions in all forward passes of the policy, padding not counted."""
    padded_tokens: int
    """The same with padding, over all ranks."""
    seconds: float
    """Wall time of the update on the slowest rank."""
    skipped: bool
    """True when loss or gradients were not finite on any rank: no rank took the step."""
    skipped_updates: int
    """Updates skipped since the start of the run."""

    margin: float | None = None
    """Pairs: mean implicit reward margin beta * h."""
    accuracy: float | None = None
    """Pairs: share with h > 0."""
    kl_chosen: float | None = None
    """Pairs: mean of log pi(y|x) - log mu(y|x) over chosen completions, nats per sequence."""
    kl_rejected: float | None = None
    """Pairs: the same over rejected completions."""

    player_preference: float | None = None
    """Games with opponents: mean weighted preference of a player over its opponents, 1/2 when even."""
    kl_players: float | None = None
    """Games: mean of log pi(y|x) - log mu(y|x) over players, nats per sequence."""
    advantage_std: float | None = None
    """Games: standard deviation of the players' advantages in a game."""
    player_ess: float | None = None
    """Games: effective sample size of the players' importance weights, share of the players."""
    player_truncated: float | None = None
    """Games: share of players (of their tokens, with `token`) whose ratio is over the cap."""
    opponent_ess: float | None = None
    """Games with opponents: effective sample size of the opponents' importance weights, share of the opponents."""
    opponent_truncated: float | None = None
    """Games with opponents: share of opponents (of their tokens, with `token`) whose ratio is over the cap."""
    opponent_log_ratio_max: float | None = None
    """Games whose opponents have importance weights: largest |log pi' - log b| of an opponent's token, nats; pi' is
    the opponent as it is at this update."""
    step_size: float | None = None
    """Games, where it was asked for and the step was taken: slope of log pi_{t+1}(y|x) - log pi_t(y|x) on the
    advantage over the players, with a free constant per prompt: the eta of mirror descent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStats:
    """One optimizer step on a fixed data set. Made by `StageTrainer`, alike on all ranks; read by the driver."""

    update: int
    """Number of this update, from 1; skipped ones count."""
    loss: float
    """Mean over tokens (supervised fine-tuning, nats) or over examples (other stages)."""
    metrics: dict[str, float]
    """Means of what the objective reports, by name."""
    grad_norm: float
    """Euclidean norm before clipping; `inf` when it was not finite."""
    lr: float
    tokens: int
    """Tokens in all forward passes, padding not counted, over all ranks."""
    padded_tokens: int
    """The same with padding."""
    seconds: float
    """Wall time of the update on this rank."""
    skipped: bool
    """True when loss or gradients were not finite on any rank: no rank took the step."""
    skipped_updates: int
    """Updates skipped since the start."""
