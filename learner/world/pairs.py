"""Preferences of the embedded world as training data, with known probabilities. Must not know models."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actors import world
from actors.data.rows import held_out
from learner.tensors.examples import TokenPair


def world_pairs(
    task: world.Task, count: int, labels: Literal["soft", "sampled"], seed: int, validation_fraction: float
) -> tuple[list[TokenPair], list[TokenPair]]:
    """Draw training and held-out pairs, `count` together: a prompt, two different corpus responses, the preference.

    Soft labels are the gold probability of the first response over the second; sampled ones put the winner of one
    comparison first, with probability 1. All 16 prompts are on both sides. Pairs of outcomes are held out, by their
    hash. A response without room for it has no end-of-sequence.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    gold = [world.World(task).preference_matrix(index) for index in range(world.PROMPTS)]
    train: list[TokenPair] = []
    validation: list[TokenPair] = []
    while len(train) + len(validation) < count:
        prompts = rng.integers(world.PROMPTS, size=count)
        firsts, seconds = (_unpadded(world.corpus_responses(prompts, rng)) for _ in range(2))
        for x, first, second, draw in zip(prompts.tolist(), firsts, seconds, rng.random(count).tolist(), strict=True):
            i, j = world.outcome(first), world.outcome(second)
            if i == j or len(train) + len(validation) == count:
                continue
            probability = float(gold[x][i, j])
            if labels == "sampled":
                first, second = (first, second) if draw < probability else (second, first)
                probability = 1.0
            key = f"{x}:{min(i, j)}:{max(i, j)}".encode()
            side = validation if held_out(key, validation_fraction) else train
            side.append(TokenPair(world.prompt_token_ids(x), first, second, probability))
    return train, validation


def _unpadded(responses: NDArray[np.int64]) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token != world.PAD) for row in responses.tolist()]
