"""Charts of `metrics.jsonl`: the few columns that matter for a loss or a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launch.report.drawing.plots import Line
from launch.report.records import Run

MOST_HELD_OUT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Columns of `metrics.jsonl` that are drawn together, by their names in a legend."""

    title: str
    note: str
    columns: Mapping[str, str]
    noisy: bool = True  # a value for each update, which varies from batch to batch
    level: tuple[float, str] | None = None
    bounds: tuple[str, str] | None = None  # columns of the interval


CHARTS = (
    Chart(
        title="Win rate",
        note="share of comparisons won against the start, with its 95% interval",
        columns={"win_rate": "win rate"},
        noisy=False,
        level=(0.5, "even"),
        bounds=("win_rate_low", "win_rate_high"),
    ),
    Chart(
        title="Exploitability",
        note="how far the best answer beats the policy (probability), by enumeration",
        columns={"exploitability": "exploitability"},
        noisy=False,
        level=(0.0, "unbeatable"),
    ),
    Chart(
        title="KL to the reference",
        note="nats per completion, of evaluations",
        columns={"exact_kl": "by enumeration", "kl": "estimated"},
        noisy=False,
    ),
    Chart(
        title="Reward",
        note="the judge's mean score on the evaluation prompts",
        columns={"reward": "reward"},
        noisy=False,
    ),
    Chart(title="Score", note="the judge's mean score of a batch", columns={"score_mean": "score"}),
    Chart(
        title="Preference over opponents",
        note="mean probability that a player is preferred",
        columns={"player_preference": "preference"},
        level=(0.5, "even"),
    ),
    Chart(title="Accuracy", note="share of pairs ranked as the judge does", columns={"accuracy": "accuracy"}),
    Chart(title="Loss", note="mean of a batch, in the loss's own unit", columns={"loss": "loss"}),
    Chart(
        title="KL in training",
        note="mean log-ratio to the reference, nats per completion",
        columns={"kl_players": "policy", "kl_chosen": "chosen", "kl_rejected": "rejected"},
    ),
    Chart(title="Gradient norm", note="Euclidean, before clipping", columns={"grad_norm": "norm"}),
    Chart(title="Value error", note="mean squared error of the value head", columns={"value_error": "error"}),
    Chart(title="Length", note="tokens per completion", columns={"completion_tokens_mean": "tokens"}),
)


def charts_of(run: Run) -> list[Chart]:
    """Return the charts for a run: those of its loss, and of its held-out examples, if it is a stage."""
    names = list(dict.fromkeys(name for row in run.rows for name in row if name.startswith("held_out_")))
    stage = [
        Chart(title=name.replace("_", " ").capitalize(), note="on held-out examples", columns={name: name}, noisy=False)
        for name in names[:MOST_HELD_OUT]
    ]
    return [*stage, *CHARTS]


def lines_of(chart: Chart, run: Run, first: int = 0, label: str | None = None) -> list[Line]:
    """Return the lines of a chart that a run has values for."""
    lines: list[Line] = []
    for name, meaning in chart.columns.items():
        points = run.column(name)
        if points:
            noisy = chart.noisy and len(points) > 1
            lines.append(Line(label or meaning, points, first + len(lines), _bounds(chart, run), noisy))
    return lines


def _bounds(chart: Chart, run: Run) -> dict[float, tuple[float, float]]:
    if chart.bounds is None:
        return {}
    low, high = (dict(run.column(name)) for name in chart.bounds)
    return {x: (low[x], high[x]) for x in low.keys() & high.keys()}
