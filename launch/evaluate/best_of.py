"""Measure choices among K sampled answers: by a verifier, by majority, by an oracle. Pure; knows only numbers.

Answers are correct or not if a threshold says so, and a choice then has an accuracy. Otherwise it has a mean score, and
a share of wins against one more answer of the same prompt. Results are means over prompts with 95% intervals
(`actors.intervals`); prompts that repeat count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import comb
from statistics import fmean

from actors.intervals import Interval, mean_interval, means_by, share_interval


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answers sampled for one prompt, in order."""

    correct: tuple[bool, ...] | None  # None: the judge's scores have no threshold
    answers: tuple[Hashable | None, ...] | None = None
    """Final answers, equal if they mean the same; None for a candidate without one. None: the judge extracts none."""
    scores: tuple[tuple[float, ...], ...] = ()  # one tuple per verifier; higher is better
    judged: tuple[float, ...] = ()  # the judge's scores; read if `correct` is None
    prompt: Hashable = None
    """Equal for the same prompt; None: a prompt like no other."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95% interval; no interval if there are too few prompts for one."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], interval: Callable[[Sequence[float]], Interval | None]) -> Estimate:
        """Average prompts' values, with the interval that `interval` makes of them."""
        low, high = interval(values) or (None, None)
        return cls(fmean(values), low, high)

    def cell(self) -> str:
        """Return the mean, with its interval if there is one, for a table."""
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True, slots=True)
class Row:
    """Result of a choice among k candidates: accuracy, or mean score without a threshold."""

    k: int
    oracle: Estimate  # pass@k, at least one is correct; or the mean of the best score
    verifiers: list[Estimate]
    """The candidate with the verifier's best score, for each verifier."""
    oracle_wins: Estimate | None = None
    """Share of the prompt's other candidates that the oracle's choice beats by the judge's score, ties one half; None
    if there is a threshold."""
    verifier_wins: list[Estimate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one evaluation."""

    prompts: int  # different ones
    candidates: int  # per prompt; K
    pass_at_1: Estimate | None  # None if there is no threshold
    majority: Estimate | None
    """The most frequent of all K answers is correct; None if the judge extracts no final answers."""
    rows: list[Row]  # k = 1, 2, 4, ... and K
    mean_score: Estimate | None = None  # the judge's, over all answers; None if there is a threshold


Choice = Callable[[Candidates], Sequence[float]]
"""Scores by which the best of a prompt's candidates is chosen."""


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Return the probability that k candidates, drawn without replacement, include a correct one.

    1 - C(n-c, k) / C(n, k) with c of n correct (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    eq. 1).
    """
    n = len(correct)
    return 1.0 - comb(n - sum(correct), k) / comb(n, k)


def best_of_k(values: Sequence[float], scores: Sequence[float], k: int) -> float:
    """Return the mean value of the best-scored of k candidates, drawn without replacement.

        sum_{i=0}^{n-k} C(n-i-1, k-1) a_i / C(n, k),   a_i the value of rank i: 1 if it is correct, else 0, say

    (Hosseini et al. 2024, "V-STaR", eq. 3). Ranks go by falling score; equal scores keep their order.
    """
    n = len(values)
    ranking = sorted(range(n), key=lambda index: -scores[index])
    return sum(comb(n - i - 1, k - 1) * values[ranking[i]] for i in range(n - k + 1)) / comb(n, k)


def wins(scores: Sequence[float]) -> list[float]:
    """Return each score's share of wins against the others, ties one half; 1/2 if there are no others."""
    rivals = len(scores) - 1
    if not rivals:
        return [0.5]
    return [(sum(0.5 * ((a > b) + (a >= b)) for b in scores) - 0.5) / rivals for a in scores]


def majority_is_correct(candidates: Candidates) -> bool:
    """Return whether the most frequent answer is correct (self-consistency: Wang et al. 2023).

    The first sampled answer wins a tie. Candidates without an answer do not vote.
    """
    votes = Counter(answer for answer in candidates.answers or () if answer is not None)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])
    return any(
        ok for ok, answer in zip(candidates.correct or (), candidates.answers or (), strict=True) if answer == winner
    )


def _accuracy(each: Candidates, by: Choice, k: int) -> float:
    return best_of_k(each.correct or (), by(each), k)


def report(sampled: Sequence[Candidates]) -> Report:
    """Compute all results for at least one prompt; all prompts must have equally many candidates and verifiers."""
    total = len(sampled[0].scores[0] if sampled[0].scores else sampled[0].correct or sampled[0].judged)
    ks = sorted({total, *(1 << power for power in range(total.bit_length()) if 1 << power <= total)})
    graded = all(each.correct is not None for each in sampled)
    keys = [number if each.prompt is None else (each.prompt,) for number, each in enumerate(sampled)]

    def verifier(number: int) -> Choice:
        return lambda each: each.scores[number]

    of_verifier = [verifier(number) for number in range(len(sampled[0].scores))]

    def over(value: Callable[[Candidates], float], *, share: bool = True) -> Estimate:
        return Estimate.of(means_by(keys, map(value, sampled)), share_interval if share else mean_interval)

    def accuracies(k: int) -> Row:
        chosen = [over(partial(_accuracy, by=by, k=k)) for by in of_verifier]
        return Row(k, over(lambda each: pass_at_k(each.correct or (), k)), chosen)

    def scores(k: int) -> Row:
        def by_score(by: Choice) -> Estimate:
            return over(lambda each: best_of_k(each.judged, by(each), k), share=False)

        def by_wins(by: Choice) -> Estimate:
            return over(lambda each: best_of_k(wins(each.judged), by(each), k))

        def oracle(each: Candidates) -> tuple[float, ...]:
            return each.judged

        return Row(k, by_score(oracle), [*map(by_score, of_verifier)], by_wins(oracle), [*map(by_wins, of_verifier)])

    rows = [accuracies(k) if graded else scores(k) for k in ks]
    voted = graded and all(each.answers is not None for each in sampled)
    majority = over(lambda each: float(majority_is_correct(each))) if voted else None
    first = rows[0].oracle
    return Report(len(set(keys)), total, first if graded else None, majority, rows, None if graded else first)


Line = str | Sequence[str]
"""A text, or the cells of a table's line."""


def render(results: Report, verifiers: Sequence[str] = ()) -> str:
    """Return the report as a table; `verifiers` are the names to show."""

    def table(title: str, found: Sequence[tuple[int, Estimate, Sequence[Estimate]]]) -> list[Line]:
        numbered = [f"by verifier {number}" for number in range(1, len(results.rows[0].verifiers) + 1)]
        rows = [[f"best of {k}", oracle.cell(), *(each.cell() for each in chosen)] for k, oracle, chosen in found]
        return [[title, "any (oracle)", *numbered], *rows]

    lines: list[Line] = [f"{results.prompts} prompts, {results.candidates} candidates each, 95% intervals over prompts"]
    lines += [f"verifier {number}: {name}" for number, name in enumerate(verifiers, start=1)]
    lines += table("choice" if results.mean_score is None else "mean score", [
        (row.k, row.oracle, row.verifiers) for row in results.rows
    ])  # fmt: skip
    if results.mean_score is not None:
        beaten = [(row.k, row.oracle_wins, row.verifier_wins) for row in results.rows if row.oracle_wins is not None]
        lines += [
            "",
            *table("win rate", beaten),
            "Against one more answer; scores have no threshold: --threshold sets one",
        ]
    if results.majority is not None:
        lines.append([f"majority of {results.candidates}", results.majority.cell()])
    if results.pass_at_1 is not None:
        lines.append(["pass@1", results.pass_at_1.cell()])
    return "\n".join(in_columns(lines, 15))


def in_columns(lines: Sequence[Line], first: int) -> list[str]:
    """Lay out lists of cells in common columns, the first of `first` characters if they suffice; keep texts."""
    rows = [each for each in lines if not isinstance(each, str)]
    longest = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    widths = [max(first, longest[0] + 1), *(max(23, each + 2) for each in longest[1:])]

    def laid_out(cells: Sequence[str]) -> str:
        return "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()

    return [each if isinstance(each, str) else laid_out(each) for each in lines]
