"""Accuracy of a selection among K sampled answers: by a verifier, by majority, by an oracle. Pure; knows only numbers.

A prompt has K candidates, each correct or not. Results are means over prompts with 95% Wilson intervals, which are
conservative for the estimates in [0, 1] that a prompt contributes (`launch.run.win_rate.wilson_interval`).
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

from launch.run.win_rate import wilson_interval


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answers sampled for one prompt, in order."""

    correct: tuple[bool, ...]
    answers: tuple[Hashable | None, ...] | None = None
    """Final answers, equal if they mean the same; None for a candidate without one. None: the judge extracts none."""
    scores: tuple[tuple[float, ...], ...] = ()  # one tuple per verifier; higher is better


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """Accuracy of a selection among k candidates."""

    k: int
    oracle: Estimate  # pass@k: at least one is correct
    verifiers: list[Estimate]
    """The candidate with the verifier's best score is correct, for each verifier."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one evaluation."""

    prompts: int
    candidates: int  # per prompt; K
    pass_at_1: Estimate
    majority: Estimate | None
    """The most frequent of all K answers is correct; None if the judge extracts no final answers."""
    rows: list[Row]  # k = 1, 2, 4, ... and K


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Return the probability that k candidates, drawn without replacement, include a correct one.

    1 - C(n-c, k) / C(n, k) with c of n correct (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    eq. 1).
    """
    n = len(correct)
    return 1.0 - comb(n - sum(correct), k) / comb(n, k)


def best_of_k(correct: Sequence[bool], scores: Sequence[float], k: int) -> float:
    """Return the probability that the best-scored of k candidates, drawn without replacement, is correct.

        sum_{i=0}^{n-k} C(n-i-1, k-1) a_i / C(n, k),   a_i = 1 if the candidate of rank i is correct, else 0

    (Hosseini et al. 2024, "V-STaR", eq. 3). Ranks go by falling score; equal scores keep their order.
    """
    n = len(correct)
    ranking = sorted(range(n), key=lambda index: -scores[index])
    return sum(comb(n - i - 1, k - 1) * correct[ranking[i]] for i in range(n - k + 1)) / comb(n, k)


def majority_is_correct(candidates: Candidates) -> bool:
    """Return whether the most frequent answer is correct (self-consistency: Wang et al. 2023).

    The first sampled answer wins a tie. Candidates without an answer do not vote.
    """
    votes = Counter(answer for answer in candidates.answers or () if answer is not None)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])
    return any(ok for ok, answer in zip(candidates.correct, candidates.answers or (), strict=True) if answer == winner)


def report(sampled: Sequence[Candidates]) -> Report:
    """Compute all results for at least one prompt; all prompts must have equally many candidates and verifiers."""
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


def render(results: Report, verifiers: Sequence[str] = ()) -> str:
    """Return the report as a table; `verifiers` are the names to show."""

    def line(first: str, *cells: str) -> str:
        return f"{first:<15}{''.join(f'{cell:<23}' for cell in cells)}".rstrip()

    def cell(estimate: Estimate) -> str:
        return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

    lines = [f"{results.prompts} prompts, {results.candidates} candidates each, 95% intervals"]
    lines += [f"verifier {number}: {name}" for number, name in enumerate(verifiers, start=1)]
    numbered = [f"by verifier {number}" for number in range(1, len(results.rows[0].verifiers) + 1)]
    lines.append(line("choice", "any (oracle)", *numbered))
    lines += [line(f"best of {row.k}", cell(row.oracle), *map(cell, row.verifiers)) for row in results.rows]
    if results.majority is not None:
        lines.append(line(f"majority of {results.candidates}", cell(results.majority)))
    lines.append(line("pass@1", cell(results.pass_at_1)))
    return "\n".join(lines)
