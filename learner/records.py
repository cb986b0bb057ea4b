"""The learner's reports to the driver: plain Python values, so that unpickling needs neither torch nor deepspeed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """One optimizer step over one batch. Made by `TrainEngine.update`, equal on all ranks; read by the driver.

    All values are measured under the policy before the step. Losses on pairs: means over pairs leave out ties, except
    `loss`; means over tokens cover both completions of those pairs; if all pairs are ties, these means are 0. Losses on
    games: means over tokens cover the players; other values are means over games. Fields of other losses are None.
    """

    update: int
    """Number of this update, from 1; skipped updates count."""
    loss: float
    """Mean over all pairs or games; a tie counts with the loss of h = 0."""
    grad_norm: float
    """Euclidean norm before clipping; `inf` if it was not finite."""
    lr: float
    log_ratio_max: float
    """Largest |log pi - log b| of a token (nats); b is the behaviour policy."""
    log_ratio_mean: float
    """Mean |log pi - log b| per token (nats)."""
    behaviour_kl: float
    """Estimate of KL(b || pi) per token (nats): mean of r - 1 - log r with r = pi / b (Schulman 2020's k3)."""
    pairs: int = 0  # pairs in the batch, ties included
    ties: int = 0
    games: int = 0  # games in the batch
    tokens: int
    """Tokens in all forward passes of the policy, without padding, over all ranks: completions, and prompts as often as
    they were computed, once in a pass that shares them."""
    padded_tokens: int  # tokens with padding
    seconds: float
    """Wall time of the update on the slowest rank."""
    skipped: bool
    """True if loss or gradients were not finite on some rank; then no rank took the step."""
    skipped_updates: int  # updates skipped since the start of the run

    margin: float | None = None  # pairs: mean implicit reward margin beta * h
    accuracy: float | None = None  # pairs: share with h > 0
    kl_chosen: float | None = None
    """Pairs: mean of log pi(y|x) - log mu(y|x) over chosen completions (nats per sequence)."""
    kl_rejected: float | None = None  # pairs: the same over rejected completions

    player_preference: float | None = None
    """Games with opponents: mean weighted preference of a player over its opponents; 1/2 if even."""
    kl_players: float | None = None
    """Games: mean of log pi(y|x) - log mu(y|x) over players (nats per sequence)."""
    advantage_std: float | None = None
    """Games: standard deviation of the players' advantages in a game."""
    player_ess: float | None = None
    """Games: effective sample size of the players' importance weights (share of the players)."""
    player_truncated: float | None = None
    """Games: share of players (of their tokens, with `token`) whose ratio exceeds the cap."""
    opponent_ess: float | None = None
    """Games with opponents: effective sample size of the opponents' importance weights (share of the opponents)."""
    opponent_truncated: float | None = None
    """Games with opponents: share of opponents (of their tokens, with `token`) whose ratio exceeds the cap."""
    opponent_weight_mean: float | None = None
    """Games with opponents: mean importance weight of the opponents; below 1 their cap shrinks the preference."""
    opponent_log_ratio_max: float | None = None
    """Games whose opponents have importance weights: largest |log pi' - log b| of an opponent's token (nats)."""
    kl_anchor: float | None = None
    """Runs with an anchor: mean of log pi(y|x) - log u(y|x) over the completions (nats per sequence)."""
    value_error: float | None = None  # ppo: mean squared error of the value head on a token
    step_size: float | None = None
    """Games, dpo and ipo, if requested and the step was taken: eta of mirror descent, the slope of log pi_{t+1}(y|x) -
    log pi_t(y|x) on the players' advantages, or on the residual of pairs, with a free constant per prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStats:
    """One optimizer step on a fixed data set. Made by `StageTrainer`, equal on all ranks; read by the driver.

    Fields shared with `UpdateStats` have the same meaning.
    """

    update: int
    loss: float
    """Mean over response tokens (supervised fine-tuning, nats) or over examples (other stages)."""
    metrics: dict[str, float]  # means of the objective's metrics, by name
    grad_norm: float
    lr: float
    tokens: int
    padded_tokens: int
    seconds: float
    skipped: bool
    skipped_updates: int
