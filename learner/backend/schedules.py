"""The learning rate of each update, as a pure function: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from learner.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, update: int, total_updates: int) -> float:
    """Learning rate of update `update`, counted from 0, of `total_updates`.

    Warm-up rises linearly and reaches the peak on update `warmup_updates`, never starting at 0. Linear and cosine then
    fall to the 0 that update `total_updates` would have, so that the last update still learns; past it they stay 0.
    """
    if update < config.warmup_updates:
        return config.lr * (update + 1) / (config.warmup_updates + 1)
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (update - config.warmup_updates) / max(1, total_updates - config.warmup_updates))
    if config.schedule == "linear":
        return config.lr * (1.0 - progress)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
