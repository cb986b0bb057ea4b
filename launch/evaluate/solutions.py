"""Sampled solutions on disk, and preference pairs made of them: every better one over every worse one.

Pure, except for the files. Must not know engines or judges.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from actors.errors import UsageError, writing
from actors.files import atomic_write, unwritable

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Solution:
    """One sampled and judged completion of a prompt. Written by `offbeat evaluate --solutions`."""

    prompt_id: str
    prompt: str | Chat
    """The policy's input after its template, or the chat that it was made from."""
    response: str  # without special tokens
    correct: bool | None  # None: the scores have no threshold
    score: float  # the judge's
    finished: bool  # whether it ended before the length limit
    verifier_scores: tuple[float, ...] = ()  # one per verifier


def pairs_of(solutions: Iterable[Solution], max_pairs: int, seed: int) -> list[dict[str, Any]]:
    """Make rows {prompt, chosen, rejected}: chosen is correct and rejected is not.

    If no solution is marked as correct or not, chosen has the higher score.

    Draws at most `max_pairs` from all such pairs of a prompt's distinct responses (Hosseini et al. 2024, "V-STaR",
    section 3.1); the draw depends on seed and prompt alone. Skips empty responses and those cut at the
    length limit: as training data they would end where the policy did not.
    """
    by_prompt: dict[str, list[Solution]] = {}
    for solution in solutions:
        if solution.finished and solution.response.strip():
            by_prompt.setdefault(solution.prompt_id, []).append(solution)
    rows: list[dict[str, Any]] = []
    for prompt_id, found in by_prompt.items():
        worth = {each.response: each.score if each.correct is None else float(each.correct) for each in reversed(found)}
        texts = list(dict.fromkeys(each.response for each in found))
        pairs = [(good, bad) for good, bad in product(texts, texts) if worth[good] > worth[bad]]
        if len(pairs) > max_pairs:
            pairs = random.Random(f"{seed}:{prompt_id}").sample(pairs, max_pairs)
        rows += [{"prompt": found[0].prompt, "chosen": good, "rejected": bad} for good, bad in pairs]
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, all or nothing. Raises RunError."""
    with writing(path, "or give another path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def require_targets(targets: Mapping[str, Path | None], read: Iterable[str | None]) -> None:
    """Raise UsageError if a file to write, by option, cannot be, replaces what is `read`, or is written twice."""
    taken = {Path(each).expanduser().resolve(): "the command reads it" for each in read if each}
    for option, path in targets.items():
        if path is None:
            continue
        place = path.resolve()
        problem = "it is no regular file" if path.exists() and not path.is_file() else unwritable(path.parent)
        around = [place, *(place.parents if path.exists() else [])]  # a new file is not yet part of what is read
        problem = problem or next((taken[each] for each in around if each in taken), None)
        if problem is not None:
            raise UsageError(f"{option} {path} cannot be written: {problem}; give another path")
        taken[place] = f"{option} writes it too"
