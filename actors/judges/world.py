"""The embedded world's closed-form judges: its gold preference, and the Bradley-Terry model that best explains it.

Must not know the policy: both stay fixed while the policy moves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.errors import RunError
from actors.judges.config import BradleyTerryJudgeConfig, GoldJudgeConfig, WorldJudgeConfig
from actors.preferences import mean_win_probabilities
from actors.records import Group, Judgement
from actors.world import PROMPTS, World, corpus_outcome_probabilities, outcome, prompt_index_of, sigmoid


class GoldJudge:
    """Gold rewards in the transitive task; in the intransitive task preferences, with their means as scores."""

    def __init__(self, config: GoldJudgeConfig) -> None:
        self._world = _world(config)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Return exact judgements. A look-up takes microseconds, so it runs in the event loop.

        Raises UsageError for a prompt from outside the embedded world.
        """
        return [self._judge_one(group) for group in groups]

    def _judge_one(self, group: Group) -> Judgement:
        prompt = group.lease.prompt
        scores = self._world.scores(prompt, group.completions)
        if scores is not None:
            return Judgement(scores=scores)
        preferences = self._world.preferences(prompt, group.completions)
        return Judgement(scores=mean_win_probabilities(preferences), preferences=preferences)


class BradleyTerryJudge:
    """Rewards that a reward model would learn from unlimited pairs of the corpus. Gives no preferences.

    Outcomes without end-of-sequence, invalid ones and the empty response score lowest.
    """

    def __init__(self, config: BradleyTerryJudgeConfig) -> None:
        world, corpus = _world(config), corpus_outcome_probabilities()
        self.rewards = np.stack([fit_bradley_terry(world.preference_matrix(x), corpus[x]) for x in range(PROMPTS)])
        """[16, 261] in logits; mean 0 under the corpus for each prompt."""

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Look the rewards up. Raises UsageError for a prompt from outside the embedded world."""
        judgements = []
        for group in groups:
            rewards = self.rewards[prompt_index_of(group.lease.prompt)]
            judgements.append(Judgement(tuple(float(rewards[outcome(y.token_ids)]) for y in group.completions)))
        return judgements


def fit_bradley_terry(preferences: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the rewards r [n] that maximise sum_ij w_i w_j P_ij log sigmoid(r_i - r_j). In logits; mean 0 under w.

    Args:
        preferences: P [n, n], the probability that i is preferred to j; every entry above 0, P_ij + P_ji = 1.
        weights: w [n], the distribution that both outcomes of a pair are drawn from; some may be 0.

    At the maximum the expected wins of each outcome are its actual wins: sum_j w_j (P_ij - sigmoid(r_i - r_j)) = 0.
    w_i cancels here, so an outcome of weight 0 gets the reward of one with vanishing weight. The iteration is Newman's
    (2023, "Efficient Computation of Rankings from Pairwise Comparisons", JMLR 24(238)), which has the fixed point of
    Zermelo's and takes about six times fewer steps here:
    exp(r_i) <- sum_j w_j P_ij s_ji / sum_j w_j P_ji s_ij exp(-r_i), s_ij = sigmoid(r_i - r_j).

    Raises RunError if no finite rewards are found: some outcome always wins or always loses.
    """
    rewards = np.zeros(len(weights))
    for _ in range(10_000):
        wins = sigmoid(rewards[:, None] - rewards[None, :])
        if np.abs((preferences - wins) @ weights).max() < 1e-12:
            return rewards
        won, lost = (preferences * wins.T) @ weights, (preferences.T * wins) @ weights
        rewards = rewards + np.log(won / lost)
        rewards -= weights @ rewards
    raise RunError("the Bradley-Terry fit did not converge; every preference must be above 0 and below 1")


def _world(config: WorldJudgeConfig) -> World:
    return World(config.task or "transitive", config.seed or 0)
