"""What the learner tells the driver: plain Python values, so that unpickling them needs neither torch nor deepspeed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer step over one batch of pairs. Made by `TrainEngine.update`, alike on all ranks; read by the driver.

    Means over pairs leave ties out, except `loss`; means over tokens cover both completions of the other pairs, under
    the policy as it was before the step. With ties alone those means are 0.
    """

    update: int
    """Number of this update, from 1; skipped ones count."""
    loss: float
    """Mean over all pairs; a tie adds the loss of h = 0."""
    grad_norm: float
    """Euclidean norm before clipping; `inf` when it was not finite."""
    lr: float
    margin: float
    """Mean implicit reward margin beta * h."""
    accuracy: float
    """Share of pairs with h > 0."""
    kl_chosen: float
    """Mean of log pi(y|x) - log mu(y|x) over chosen completions, nats per sequence."""
    kl_rejected: float
    """The same over rejected completions."""
    log_ratio_max: float
    """Largest |log pi - log b| of a token, nats; b is the distribution that sampled it."""
    log_ratio_mean: float
    """Mean |log pi - log b| per token, nats."""
    behaviour_kl: float
    """Estimate of KL(b || pi) per token, nats: mean of r - 1 - log r with r = pi / b (Schulman 2020's k3)."""
    pairs: int
    """Pairs in the batch, ties included."""
    ties: int
    tokens: int
    """Tokens of prompts and completions that went through the policy, padding not counted."""
    padded_tokens: int
    """The same with padding, over all ranks."""
    seconds: float
    """Wall time of the update on the slowest rank."""
    skipped: bool
    """True when loss or gradients were not finite on any rank: no rank took the step."""
    skipped_updates: int
    """Updates skipped since the start of the run."""
