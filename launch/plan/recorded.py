"""A finished run as it left its directory: what `offbeat plan` measures, and makes its model from.

Reads `config.yaml`, `summary.json`, `metrics.jsonl` and, for the lengths of answers, the journal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from launch.output.metrics import read_json_lines
from launch.output.run_directory import no_run
from launch.plan.prediction import Outcome, shares
from launch.settings.loading import RECORDED, load_config
from launch.settings.run import RunConfig

LENGTHS = 512
"""Groups of the journal that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One run, from the last resume to its end, or of a run without one all of it."""

    name: str
    config: RunConfig
    summary: Mapping[str, Any]
    update_seconds: tuple[float, ...] = ()
    """Seconds of each update, as the learner measured them."""
    damaged: int = 0  # lines of its metrics that cannot be read
    lengths: tuple[float, ...] = ()
    """Tokens of the longest answer of each group, from the journal; a group ends with it."""

    @property
    def consumed(self) -> int:
        """Groups that updates trained on."""
        return sum(int(number) for number in self.summary["staleness"]["histogram"].values())

    @property
    def updates(self) -> int:
        """Updates of this part of the run."""
        return max(1, round(self.consumed / self.config.replay.prompts_per_update))

    @property
    def versions(self) -> int:
        """Versions that were published after the first one."""
        return self.updates // self.config.replay.updates_per_publish

    @property
    def seconds(self) -> float:
        """Seconds of learning: from the first wait for a batch to the end of the last update."""
        return self.consumed / float(self.summary["groups_per_second"])

    @property
    def evaluations(self) -> int:
        """Evaluations while the run learned; the one at its end is not among them."""
        every = self.config.evaluation.every_updates
        return (self.updates - 1) // every if every else 0

    @property
    def sampled(self) -> float:
        """Groups that generators sampled while the run learned."""
        ledger = self.summary["ledger"]
        retried = ledger["generated"] / ledger["trained"] if ledger["trained"] else 1.0
        return self.consumed * retried + self.evaluations * self.config.evaluation.prompts

    @property
    def sampled_in_all(self) -> float:
        """The same with the evaluations before and after learning."""
        return self.sampled + 2 * self.config.evaluation.prompts

    def budget(self, role: str, activity: str) -> float:
        """Return seconds of the summary's time budget; 0 if it lacks them."""
        return float(self.summary["time_budget"].get(role, {}).get(activity, 0.0))

    @property
    def generating(self) -> float:
        """Seconds of generating while the run learned: the groups sampled before and after have their share."""
        return self.budget("generator", "generating") * self.sampled / self.sampled_in_all

    @property
    def updating(self) -> float:
        """Seconds of taking weights while the run learned, which are all versions but the first."""
        return self.budget("generator", "updating") * self.versions / (self.versions + 1)

    @property
    def publishing(self) -> float:
        """The learner's seconds of publishing while the run learned."""
        return self.budget("learner", "publishing") * self.versions / (self.versions + 1)

    def measured(self) -> Outcome:
        """Return the figures of the run, as far as they are of its learning."""
        seconds, ledger = self.seconds, self.summary["ledger"]
        whole = self.config.generators.count * seconds
        generating, updating = self.generating, self.updating
        training, waiting = self.budget("learner", "training"), self.budget("learner", "waiting")
        other = max(0.0, seconds - training - waiting - self.publishing)
        learner = {"training": training, "waiting": waiting, "publishing": self.publishing, "other": other}
        histogram = {int(age): int(number) for age, number in self.summary["staleness"]["histogram"].items()}
        finished = ledger["leased"] - ledger["in_flight"] - ledger["buffered"]
        idle = max(0.0, whole - generating - updating)
        return Outcome(
            updates=self.updates,
            seconds=seconds,
            groups_per_second=float(self.summary["groups_per_second"]),
            generator=shares({"generating": generating, "updating": updating, "idle": idle}),
            learner=shares(learner),
            staleness={age: number / self.consumed for age, number in sorted(histogram.items())},
            discarded=1.0 - ledger["trained"] / finished if finished else 0.0,
            sampling_rate=self.sampled / generating if generating else 0.0,
        )


def read_run(directory: Path) -> Recorded:
    """Read a run's directory. Raises UsageError if it is none, has not ended, or trained on nothing."""
    if not (directory / RECORDED).is_file():
        step = "give one that `offbeat train` wrote, or --generator-seconds and --update-seconds without a run"
        raise no_run(directory, f"has no {RECORDED}, so it is not the directory of a training run", step)
    summary = _summary(directory)
    config = load_config(directory / RECORDED)
    update_seconds, damaged = _update_seconds(directory / "metrics.jsonl")
    recorded = Recorded(
        name=str(directory),
        config=config,
        summary=summary,
        update_seconds=update_seconds,
        damaged=damaged,
        lengths=_lengths(directory),
    )
    try:
        recorded.measured()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"{directory}/summary.json is not as a run leaves it ({type(error).__name__}: {error}); restore it, or "
            "give another run"
        ) from None
    return recorded


def _summary(directory: Path) -> dict[str, Any]:
    try:
        summary: Any = json.loads((directory / "summary.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{directory} has no summary.json: the run goes on, or its driver was killed; wait for its end, or give "
            "--generator-seconds and --update-seconds without a run"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory}/summary.json cannot be read: {error}; restore it, or give another run") from None
    staleness = summary.get("staleness") if isinstance(summary, dict) else None
    consumed = staleness.get("histogram") if isinstance(staleness, dict) else None
    if not consumed or not summary.get("groups_per_second"):
        resumed = isinstance(summary, dict) and summary.get("updates")
        when = "trained on nothing since its last resume" if resumed else "ended before it trained on anything"
        raise UsageError(
            f"the run in {directory} {when}, so there is nothing to measure; give a run "
            "with at least one update, or --generator-seconds and --update-seconds without a run"
        )
    return dict(summary)


def _update_seconds(path: Path) -> tuple[tuple[float, ...], int]:
    """Return the seconds of each update, and how many lines are damaged."""
    rows: list[dict[str, Any]] = []
    damaged = 0
    with contextlib.suppress(OSError):
        rows, damaged = read_json_lines(path)
    found: list[float] = []
    for seconds in (row.get("seconds") for row in rows):
        if isinstance(seconds, int | float) and seconds:
            found.append(float(seconds))
    return tuple(found), damaged


def _lengths(directory: Path) -> tuple[float, ...]:
    """Read lengths from the journal; none if there is no journal that can be read."""
    from launch.output.journal_reader import JournalReader

    with contextlib.suppress(UsageError):
        reader = JournalReader(directory / "journal")
        groups = (group for batch in reader.batches(reader.first) for group in batch.groups)
        return tuple(
            float(max(completion.sampled_tokens for completion in group.completions))
            for group in islice(groups, LENGTHS)
        )
    return ()
