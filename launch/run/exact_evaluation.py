"""Evaluation by enumeration in the embedded world: what the policy is, not what a sample of it suggests.

Fed with the learner's table of next-token log-probs; knows neither the loop nor how the table was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.settings import WORLD
from actors.world import MAX_NEW_TOKENS, VOCABULARY, Task, World
from launch.settings.run import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from learner.world import exact


@dataclass(frozen=True, slots=True)
class ExactFigures:
    """One evaluation. Means over the 16 prompts."""

    update: int
    exploitability: float
    exact_kl: float
    """KL(policy || reference), nats per completion."""
    preference: float
    """P(policy > reference)."""
    family_shares: tuple[float, float, float] | None
    """Intransitive task: `mean_shares`."""

    def metrics(self) -> dict[str, float]:
        """As `metrics.jsonl` names them."""
        shares = self.family_shares or ()
        return {
            "exploitability": self.exploitability,
            "exact_kl": self.exact_kl,
            "exact_preference": self.preference,
            **{f"family_{number}": share for number, share in enumerate(shares)},
        }


def mean_shares(policy: exact.Policy) -> tuple[float, float, float]:
    """`exact.relative_family_shares`, mean over prompts: the share of the family that the reference likes best,
    of the one that beats it, of the one that beats that."""
    from learner.world import exact

    first, second, third, _ = exact.relative_family_shares(policy).mean(axis=0)
    return float(first), float(second), float(third)


@dataclass
class ExactEvaluation:
    """Measures policies against one reference; remembers what it measured.

    `reference_dir` holds the reference, a policy of the embedded world; `temperature` is the sampling temperature.
    """

    task: Task
    seed: int
    reference_dir: Path
    temperature: float = 1.0
    history: list[ExactFigures] = field(default_factory=list)
    _parts: Any = None

    def measure(self, update: int, token_logprobs: np.ndarray) -> ExactFigures:
        """Figures of the policy with this table [16, 259, 18] after `update` updates.

        Raises UsageError when the reference is no policy of the embedded world.
        """
        from learner.world import exact

        if self._parts is None:
            self._parts = World(self.task, self.seed), exact.load_policy(self.reference_dir, self.temperature)
        world, reference = self._parts
        policy = exact.ExactPolicy(token_logprobs)
        figures = ExactFigures(
            update=update,
            exploitability=exact.exploitability(policy, world),
            exact_kl=exact.exact_kl(policy, reference),
            preference=exact.expected_preference(policy, reference, world),
            family_shares=mean_shares(policy) if self.task == "intransitive" else None,
        )
        self.history.append(figures)
        return figures

    def tail(self, updates: int) -> float | None:
        """Mean exploitability over the last tenth of `updates`; None when nothing was measured there."""
        last = [figures.exploitability for figures in self.history if figures.update > 0.9 * updates]
        return sum(last) / len(last) if last else None


def exact_evaluation(config: RunConfig, reference_dir: Path, say: Callable[[str], None]) -> ExactEvaluation | None:
    """Where prompts and vocabulary are the embedded world's, the game is known; elsewhere None."""
    model = reference_dir / "config.json"
    if config.prompts.source != WORLD or not config.evaluation.exact_every_updates or not model.is_file():
        return None
    if json.loads(model.read_text(encoding="utf-8")).get("vocab_size") != len(VOCABULARY):
        return None
    if config.sampling.max_new_tokens != MAX_NEW_TOKENS:
        say(
            f"no evaluation by enumeration: it is of completions of up to {MAX_NEW_TOKENS} tokens, and "
            f"sampling.max_new_tokens is {config.sampling.max_new_tokens}"
        )
        return None
    return ExactEvaluation(config.world.task, config.world.seed, reference_dir, config.sampling.temperature)
