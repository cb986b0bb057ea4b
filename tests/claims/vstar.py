"""Numbers of docs/evaluate.md about V-STaR in rounds. Every seed in the raw result is in each cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import of

vstar = of("docs/evaluate.md", "vstar_rounds.json")
LAST, BEST_OF = "solver 2", 16
LIKELIHOOD, REWARD, OWN = range(3)
"""Places in the choices of a row."""


def of_seeds(value: Callable[[Any], float]) -> Callable[[Any], str]:
    """Write a figure of the last solver, a number for each seed."""
    return lambda raw: ", ".join(f"{value(run['solvers'][LAST]):.3f}" for run in raw["runs"])


def best(place: int) -> Callable[[Any], float]:
    """Return a choice's share of correct answers among all that were sampled."""

    def value(solver: Any) -> float:
        (row,) = (row for row in solver["rows"] if row["k"] == BEST_OF)
        return float(row["verifiers"][place]["value"])

    return value


def gain(seed: int) -> Callable[[Any], str]:
    def text(raw: Any) -> str:
        told = raw["runs"][seed]["solvers"][LAST]["verifier_less"]["a vote"]
        low, high = told["interval"]
        return f"{told['value']:.3f} [{low:.3f}, {high:.3f}]"

    return text


CLAIMS = [
    vstar("| one answer | {figures} |", figures=of_seeds(lambda solver: float(solver["pass_at_1"]["value"]))),
    vstar("| a vote of 16 | {figures} |", figures=of_seeds(lambda solver: float(solver["majority"]["value"]))),
    vstar("| best of 16, by the solver's own likelihood | {figures} |", figures=of_seeds(best(OWN))),
    vstar("best of 16, by the verifier's reward | {figures} |", figures=of_seeds(best(REWARD))),
    vstar("best of 16, by the verifier's likelihood | {figures} |", figures=of_seeds(best(LIKELIHOOD))),
    vstar("beats the vote by {first}, {second} and {third}.", first=gain(0), second=gain(1), third=gain(2)),
    vstar("of which {share:.0%} forget the carries", share=lambda raw: raw["runs"][0]["task"]["forgetful"]),
    vstar("answers {solvers/solver 2/prompts} held-out problems {solvers/solver 2/candidates} times", at="runs/0"),
]
