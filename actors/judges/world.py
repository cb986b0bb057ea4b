"""The embedded world's Bradley-Terry model as a judge: what a reward model with unlimited data would learn.

It explains the gold preference by one reward per outcome as well as a reward can, on pairs of the corpus that the
starting policy was trained on. It must not know the policy: its rewards stay what the corpus made them while the
policy moves away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from actors.errors import RunError
from actors.records import Group, Judgement


def fit_bradley_terry(preferences: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards r [n] that maximise sum_ij w_i w_j P_ij log sigmoid(r_i - r_j), in logits, with mean 0 under w.

    Args:
        preferences: P [n, n], the probability that i is preferred to j; every entry above 0, P_ij + P_ji = 1.
        weights: w [n], the distribution that both outcomes of a pair are drawn from; some may be 0.

    At the maximum the model expects of each outcome the wins that it has: sum_j w_j (P_ij - sigmoid(r_i - r_j)) = 0.
    w_i itself cancels in this, so an outcome of weight 0 has a reward too: the one that an outcome of vanishing weight
    would get from its comparisons with the others. The iteration is Newman's (2023, "Efficient Computation of Rankings
    from Pairwise Comparisons", JMLR 24(238)), with the fixed point of Zermelo's and about six times fewer steps here:
    exp(r_i) <- sum_j w_j P_ij s_ji / sum_j w_j P_ji s_ij exp(-r_i), s_ij = sigmoid(r_i - r_j).

    Raises:
        RunError: no finite rewards were found; some outcome always wins or always loses.
    """
    from actors.world import sigmoid

    rewards = np.zeros(len(weights))
    for _ in range(10_000):
        wins = sigmoid(rewards[:, None] - rewards[None, :])
        if np.abs((preferences - wins) @ weights).max() < 1e-12:
            return rewards
        won, lost = (preferences * wins.T) @ weights, (preferences.T * wins) @ weights
        rewards = rewards + np.log(won / lost)
        rewards -= weights @ rewards
    raise RunError("the Bradley-Terry fit did not converge; every preference must be above 0 and below 1")


class BradleyTerryJudge:
    """Fitted rewards as scores, no preferences; NOEOS, INVALID and the empty response are the lowest of all."""

    def __init__(self, task: str, seed: int) -> None:
        from actors.world import PROMPTS, World, corpus_outcome_probabilities

        world = World(cast(Any, task), seed)
        corpus = corpus_outcome_probabilities()
        self.rewards = np.stack([fit_bradley_terry(world.preference_matrix(x), corpus[x]) for x in range(PROMPTS)])
        """[16, 261] in logits; mean 0 under the corpus for each prompt."""

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Look-ups; microseconds each, so the event loop is not left.

        Raises UsageError for a prompt that is not the embedded world's.
        """
        return [self._judge_one(group) for group in groups]

    def _judge_one(self, group: Group) -> Judgement:
        from actors.world import outcome, prompt_index_of

        rewards = self.rewards[prompt_index_of(group.lease.prompt)]
        return Judgement(scores=tuple(float(rewards[outcome(y.token_ids)]) for y in group.completions))
