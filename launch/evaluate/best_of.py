"""How good a choice among K sampled answers is: by a verifier, by majority, by an oracle. Pure; knows numbers only.

One prompt has K candidates, each correct or not; figures are means over prompts with 95% Wilson intervals, which are
conservative for the estimates between 0 and 1 that a prompt contributes (`evaluation.wilson_interval`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

from launch.run.win_rate import wilson_interval


@dataclass(frozen=True, slots=True)
class Candidates:
    """The sampled answers to one prompt, in the order they were sampled."""

    correct: tuple[bool, ...]
    answers: tuple[Hashable | None, ...] | None = None
    """Final answers, equal where they mean the same; None for a candidate without one. Absent: the judge has none."""
    scores: tuple[tuple[float, ...], ...] = ()
    """Each verifier's; higher is better."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts."""

    value: float
    low: float
    high: float
    """95% interval."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a choice among k candidates reaches."""

    k: int
    oracle: Estimate
    """pass@k: any of them is correct."""
    verifiers: list[Estimate]
    """The one with a verifier's best score is correct, for each verifier."""


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one evaluation."""

    prompts: int
    candidates: int
    """Of each prompt; K."""
    pass_at_1: Estimate
    majority: Estimate | None
    """Of all K, the most frequent answer is correct; None where the judge does not say what an answer is."""
    rows: list[Row]
    """k = 1, 2, 4, ... and K."""


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Probability that k of the candidates, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k)
    with c of n correct (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1)."""
    n = len(correct)
    return 1.0 - comb(n - sum(correct), k) / comb(n, k)


def best_of_k(correct: Sequence[bool], scores: Sequence[float], k: int) -> float:
    """Probability that the best-scored of k candidates, drawn without replacement, is correct:

        sum_{i=0}^{n-k} C(n-i-1, k-1) a_i / C(n, k),   a_i = 1 where the candidate of rank i is correct

    (Hosseini et al. 2024, "V-STaR", eq. 3). Ranks go by falling score, and equal scores by order.
    """
    n = len(correct)
    ranking = sorted(range(n), key=lambda index: -scores[index])
    return sum(comb(n - i - 1, k - 1) * correct[ranking[i]] for i in range(n - k + 1)) / comb(n, k)


def majority_is_correct(candidates: Candidates) -> bool:
    """Whether the most frequent answer is a correct one (self-consistency: Wang et al. 2023); a tie goes to the answer
    that was sampled first, and candidates without an answer do not vote."""
    votes = Counter(answer for answer in candidates.answers or () if answer is not None)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])
    return any(ok for ok, answer in zip(candidates.correct, candidates.answers or (), strict=True) if answer == winner)


def report(sampled: Sequence[Candidates]) -> Report:
    """All figures of prompts that have equally many candidates and verifiers; at least one prompt."""
    total = len(sampled[0].correct)
    ks = sorted({total, *(1 << power for power in range(total.bit_length()) if 1 << power <= total)})
    voted = all(each.answers is not None for each in sampled)

    def over(values: Sequence[float]) -> Estimate:
        wins = min(sum(values), float(len(values)))  # rounding must not take the mean above 1
        return Estimate(wins / len(values), *wilson_interval(wins, len(values)))

    rows = [
        Row(
            k,
            over([pass_at_k(each.correct, k) for each in sampled]),
            [
                over([best_of_k(each.correct, each.scores[number], k) for each in sampled])
                for number in range(len(sampled[0].scores))
            ],
        )
        for k in ks
    ]
    majority = over([float(majority_is_correct(each)) for each in sampled]) if voted else None
    return Report(len(sampled), total, rows[0].oracle, majority, rows)


def render(figures: Report, verifiers: Sequence[str] = ()) -> str:
    """The report as a table; `verifiers` are named as they are to be shown."""

    def line(first: str, *cells: str) -> str:
        return f"{first:<15}{''.join(f'{cell:<23}' for cell in cells)}".rstrip()

    def cell(estimate: Estimate) -> str:
        return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

    lines = [f"{figures.prompts} prompts, {figures.candidates} candidates each, 95% intervals"]
    lines += [f"verifier {number}: {name}" for number, name in enumerate(verifiers, start=1)]
    numbered = [f"by verifier {number}" for number in range(1, len(figures.rows[0].verifiers) + 1)]
    lines.append(line("choice", "any (oracle)", *numbered))
    lines += [line(f"best of {row.k}", cell(row.oracle), *map(cell, row.verifiers)) for row in figures.rows]
    if figures.majority is not None:
        lines.append(line(f"majority of {figures.candidates}", cell(figures.majority)))
    lines.append(line("pass@1", cell(figures.pass_at_1)))
    return "\n".join(lines)
