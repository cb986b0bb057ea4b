"""Preferences of the embedded world as training data: their probabilities are known. It must not know models."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actors import world
from learner.tensors.examples import TokenPair


def world_pairs(
    task: world.Task, count: int, labels: Literal["soft", "sampled"], seed: int, validation_fraction: float
) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training and held-out pairs, `count` together: a prompt, two different corpus responses, the gold preference.

    Soft labels are the gold probability of the first response over the second; sampled ones put the winner of one
    comparison first, with probability 1. All 16 prompts are on both sides; what is held out is pairs of outcomes, by
    their own hash, so that none is on both. A response that ran out of room has no end-of-sequence.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    gold = [world.World(task).preference_matrix(index) for index in range(world.PROMPTS)]
    train: list[TokenPair] = []
    held_out: list[TokenPair] = []
    while len(train) + len(held_out) < count:
        prompts = rng.integers(world.PROMPTS, size=count)
        firsts, seconds = (_unpadded(world.corpus_responses(prompts, rng)) for _ in range(2))
        for x, first, second, draw in zip(prompts.tolist(), firsts, seconds, rng.random(count).tolist(), strict=True):
            i, j = world.outcome(first), world.outcome(second)
            if i == j or len(train) + len(held_out) == count:
                continue
            probability = float(gold[x][i, j])
            if labels == "sampled":
                first, second = (first, second) if draw < probability else (second, first)
                probability = 1.0
            side = held_out if _held_out(x, i, j, validation_fraction) else train
            side.append(TokenPair(world.prompt_token_ids(x), first, second, probability))
    return train, held_out


def _unpadded(responses: NDArray[np.int64]) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token != world.PAD) for row in responses.tolist()]


def _held_out(prompt: int, i: int, j: int, fraction: float) -> bool:
    digest = hashlib.sha256(f"{prompt}:{min(i, j)}:{max(i, j)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
