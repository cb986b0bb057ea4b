"""Exact metrics that only tests need: the win rate by gold reward, and the gold reward itself."""

import numpy as np

from actors.world import PROMPTS, World
from learner.world.exact import Policy, expected_preference


def exact_win_rate(policy: Policy, reference: Policy, world: World) -> float:
    """How often the policy's response is the better one, mean over prompts.

    Transitive task: P(r* > r*') + P(r* = r*') / 2. Intransitive task, in which no response is better in itself: the
    expected preference.
    """
    if world.task == "intransitive":
        return expected_preference(policy, reference, world)
    wins = 0.0
    for x in range(PROMPTS):
        rewards = world.rewards[x]
        better = 0.5 * (1.0 + np.sign(rewards[:, None] - rewards[None, :]))
        wins += policy.probabilities[x] @ better @ reference.probabilities[x]
    return float(wins / PROMPTS)


def expected_reward(policy: Policy, world: World) -> float:
    """Mean gold reward r* of the policy's outcomes, over prompts."""
    return float((policy.probabilities * world.rewards).sum(axis=1).mean())
