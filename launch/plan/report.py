"""Render the output of `offbeat plan`: figures side by side, the splits, and the source of each number of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.foreign.text import WHOLE, shown
from launch.output.board import clock
from launch.plan.derive import Derived, Value
from launch.plan.prediction import Cost, Outcome
from launch.plan.split import Split
from launch.settings.run import RunConfig


@dataclass(frozen=True, slots=True)
class Column:
    """One outcome to show."""

    name: str
    outcome: Outcome
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything to print."""

    subject: str
    config: RunConfig
    derived: Derived
    columns: Sequence[Column]
    gpus: int | None = None
    splits: Sequence[Split] = ()

    @property
    def pair(self) -> tuple[Outcome, Outcome] | None:
        """The measured outcome and the one that was predicted for it."""
        found = {column.name: column.outcome for column in self.columns}
        return (found["measured"], found["predicted"]) if "measured" in found else None


def print_report(report: Report) -> None:
    """Print lines for people."""
    print(shown("\n".join(_lines(report)), WHOLE, lines=True))


def print_json(report: Report) -> None:
    """Print one JSON object."""
    pair = report.pair
    found = {
        "subject": report.subject,
        "outcomes": {column.name: column.outcome.figures() | _costs(column.cost) for column in report.columns},
        "errors": None if pair is None else errors(*pair),
        "splits": [
            {"generators": each.generators, "ranks": each.ranks, **each.outcome.figures(), **_costs(each.cost)}
            for each in report.splits
        ],
        "model": [asdict(value) for value in report.derived.values],
        "notes": list(report.derived.notes),
    }
    print(shown(json.dumps(found, indent=2), WHOLE, lines=True))


def errors(measured: Outcome, predicted: Outcome) -> dict[str, float]:
    """Return how far a prediction is off: of rates as a share of what was measured, of shares as their difference."""
    found = {
        "groups_per_second": predicted.groups_per_second / measured.groups_per_second - 1.0,
        "staleness_mean": predicted.staleness_mean - measured.staleness_mean,
    }
    for role in ("generator", "learner"):
        one, other = getattr(measured, role), getattr(predicted, role)
        found |= {f"{role}_{name}": other[name] - one[name] for name in one}
    return found


def _costs(cost: Cost) -> dict[str, Any]:
    return {"gpus": cost.gpus, "gpu_hours": cost.gpu_hours, "money": cost.money}


def _lines(report: Report) -> Iterator[str]:
    replay, config = report.config.replay, report.config
    roles = f"{_many(config.generators.count, 'generator')}, {_many(config.learner.ranks, 'learner rank')}"
    yield (
        f"{report.subject}: {replay.prompts_per_update} prompts per update, {roles}, staleness bound "
        f"{replay.max_staleness}, {replay.order} order"
    )
    yield ""
    yield from _aligned([["", *(column.name for column in report.columns)], *_figures(report)])
    if (pair := report.pair) is not None:
        off = errors(*pair)
        yield ""
        yield (
            f"the prediction is off by {off['groups_per_second']:+.0%} in groups/s, by "
            f"{_points(off['generator_idle'])} in the generators' idle share, by {_points(off['learner_waiting'])} in "
            f"the learner's waiting share, by {off['staleness_mean']:+.2f} versions in the mean staleness"
        )
    if report.splits:
        yield ""
        yield from _splits(report)
    yield ""
    yield from _sources(report.derived)


def _figures(report: Report) -> Iterator[list[str]]:
    outcomes = [column.outcome for column in report.columns]
    yield ["updates", *(f"{each.updates:,}" for each in outcomes)]
    yield ["groups/s", *(_number(each.groups_per_second) for each in outcomes)]
    yield ["time of learning", *(clock(each.seconds) for each in outcomes)]
    for role in ("generator", "learner"):
        for name in getattr(outcomes[0], role):
            yield [f"{role} {name}", *(f"{getattr(each, role)[name]:.1%}" for each in outcomes)]
    yield ["staleness mean", *(f"{each.staleness_mean:.2f}" for each in outcomes)]
    yield ["staleness largest", *(str(each.staleness_max) for each in outcomes)]
    for age in sorted({age for each in outcomes for age in each.staleness}):
        yield [f"staleness {age}", *(f"{each.staleness.get(age, 0.0):.1%}" for each in outcomes)]
    yield ["leases discarded", *(f"{each.discarded:.1%}" for each in outcomes)]
    costs = [column.cost for column in report.columns]
    if any(cost.gpus for cost in costs):
        yield ["GPUs", *(f"{cost.gpus:g}" for cost in costs)]
        yield ["GPU-hours", *(_number(cost.gpu_hours) for cost in costs)]
        if any(cost.money is not None for cost in costs):
            yield ["cost", *(_number(cost.money or 0.0) for cost in costs)]


def _splits(report: Report) -> Iterator[str]:
    best, priced = report.splits[0], report.splits[0].cost.money is not None
    yield (
        f"the best split of {report.gpus} GPUs: {_many(best.generators, 'generator')} and "
        f"{_many(best.ranks, 'learner rank')}, {_number(best.outcome.groups_per_second)} groups/s"
    )
    head = ["generators", "ranks", "groups/s", "generators idle", "learner waits", "staleness", "GPU-hours"]
    rows = [[*head, "cost"] if priced else head]
    for each in report.splits:
        outcome = each.outcome
        row = [str(each.generators), str(each.ranks), _number(outcome.groups_per_second)]
        row += [f"{outcome.generator['idle']:.0%}", f"{outcome.learner['waiting']:.0%}"]
        row += [f"{outcome.staleness_mean:.2f}", _number(each.cost.gpu_hours)]
        rows.append([*row, _number(each.cost.money or 0.0)] if priced else row)
    yield from _aligned(rows)


def _sources(derived: Derived) -> Iterator[str]:
    for source in ("measured", "given", "assumed"):
        values = [value for value in derived.values if value.source == source]
        if values:
            yield f"{source}:"
            yield from (f"  {_value(value)}" for value in values)
    if derived.notes:
        yield "mind:"
        yield from (f"  {note}" for note in derived.notes)


def _value(value: Value) -> str:
    note = f" ({value.note})" if value.note else ""
    return f"{value.name.replace('_', ' ')} {value.value:.3g}{note}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with the first column to the left and the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        first, *others = (
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _points(share: float) -> str:
    return f"{100 * share:+.0f} points"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
