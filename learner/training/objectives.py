"""Choose the objective of a loss on rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from actors.errors import UsageError
from actors.records import Game, Pair
from learner.config import LearnerConfig
from learner.losses.config import (
    Anchor,
)
from learner.training.game_objective import GameObjective
from learner.training.pair_objective import PairObjective
from learner.training.rollout_objective import RolloutObjective


def objective_of(
    config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None
) -> RolloutObjective:
    """Return the objective of `config.loss`, pulled to `anchor` if there is one."""
    chosen = PairObjective if config.loss.on_pairs else GameObjective
    return chosen(config, shares_prompts=shares_prompts, anchor=anchor)


def check_reference_logprobs(items: Sequence[Pair] | Sequence[Game]) -> None:
    """Raise UsageError if a completion lacks the reference log-probs of its tokens, for a learner without reference."""
    for item in items:
        for each in item.completions:
            if len(each.reference_logprobs) != len(each.token_ids):
                raise UsageError(
                    f"a completion of lease {item.lease_index} has {len(each.reference_logprobs)} reference log-probs "
                    f"for {len(each.token_ids)} tokens, and with reference.count above 0 the learner holds no "
                    "reference; set reference.count to 0"
                )
