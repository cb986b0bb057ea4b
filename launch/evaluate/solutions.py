"""Sampled solutions on disk, and preference pairs of them: every correct one against every incorrect one.

Pure but for the files. It must not know engines or judges.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from actors.errors import RunError

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Solution:
    """One sampled completion of a prompt, judged. Written by `offbeat evaluate --solutions`."""

    prompt_id: str
    prompt: str | Chat
    """What the policy was given, its template applied; or the chat it was made of."""
    response: str
    """Without special tokens."""
    correct: bool
    score: float
    """The judge's."""
    finished: bool
    """Ended by itself, not at the length limit."""
    verifier_scores: tuple[float, ...] = ()
    """Each verifier's."""


def pairs_of(solutions: Iterable[Solution], max_pairs: int, seed: int) -> list[dict[str, Any]]:
    """Rows {prompt, chosen, rejected} of the solutions of each prompt, chosen correct and rejected not.

    From the product of a prompt's different correct and different incorrect responses (Hosseini et al. 2024, "V-STaR",
    section 3.1) at most `max_pairs` are drawn, by the seed and the prompt alone. Left out are empty responses and those
    that were cut at the length limit, which as data would end where the policy did not.
    """
    by_prompt: dict[str, list[Solution]] = {}
    for solution in solutions:
        if solution.finished and solution.response.strip():
            by_prompt.setdefault(solution.prompt_id, []).append(solution)
    rows: list[dict[str, Any]] = []
    for prompt_id, found in by_prompt.items():
        correct, incorrect = (
            list(dict.fromkeys(solution.response for solution in found if solution.correct == side))
            for side in (True, False)
        )
        pairs = list(product(correct, incorrect))
        if len(pairs) > max_pairs:
            pairs = random.Random(f"{seed}:{prompt_id}").sample(pairs, max_pairs)
        rows += [{"prompt": found[0].prompt, "chosen": good, "rejected": bad} for good, bad in pairs]
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, whole or not at all. Raises RunError when the disk refuses."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}; give another path") from error


def write_solutions(path: Path, solutions: Sequence[Solution]) -> None:
    """Raises RunError when the disk refuses."""
    write_jsonl(path, [asdict(solution) for solution in solutions])
