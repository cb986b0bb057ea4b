"""The sections of one run's report, each as HTML. A section without data says so in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from actors.foreign.text import WHOLE
from actors.replay_buffer.ledger import imbalance
from launch.demo.triangle import Curve
from launch.report import svg
from launch.report.diagrams import budget_figure, histogram_figure, timeline_figure, triangle_figure
from launch.report.plots import Line, Plot, plot_figure
from launch.report.records import Run, finite
from launch.report.samples import Sample, read_samples, staleness_of
from launch.report.series import SMOOTHED, number, thinned
from launch.report.timeline import lanes_of
from launch.report.verdict import exploitability_of, kl_of, verdict, win_rate_of

MOST_TEXT = 600
"""Characters of a sample that are shown before the rest is folded away."""
LONGEST_TEXT = 20_000  # characters of a sample, of the configuration and of a traceback at most
LONGEST_CONFIG = 200_000
MOST_HELD_OUT = 4
PATHS = (
    "final", "final-average", "start", "checkpoints", "metrics.jsonl", "summary.json", "config.yaml", "journal",
    "tensorboard", "evaluation", "failed_batches", "error.txt", "hangs.txt",
)  # fmt: skip


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
        columns={"kl_players": "players", "kl_chosen": "chosen", "kl_rejected": "rejected"},
    ),
    Chart(title="Gradient norm", note="Euclidean, before clipping", columns={"grad_norm": "norm"}),
    Chart(title="Value error", note="mean squared error of the value head", columns={"value_error": "error"}),
    Chart(title="Length", note="tokens per completion", columns={"completion_tokens_mean": "tokens"}),
)


def head(run: Run) -> str:
    """Return the verdict, and what could not be read."""
    found = verdict(run)
    kind = {"better": "better", "worse": "worse", "mixed": "mixed"}.get(found.outcome, "open")
    kind = "worse" if found.status == "failed" else kind
    title = svg.paragraph(f"{found.status.capitalize()}; {_OUTCOMES[found.outcome]}", "head")
    said = "".join(map(svg.paragraph, found.sentences))
    lacking = "".join(svg.paragraph(text, "note") for text in run.missing)
    return f'<div class="verdict {kind}">{title}{said}</div>{lacking}{_error(run)}'


_OUTCOMES = {
    "better": "the policy got better",
    "worse": "the policy got worse",
    "not separable": "a change is not separable from none",
    "mixed": "better by one measure, worse by another",
    "not measured": "whether the policy got better is not measured",
}


def body(run: Run, base: Path) -> Iterator[tuple[str, str]]:
    """Yield title and content of every section; links are relative to `base`."""
    yield "Curves", curves(run)
    yield "Staleness", staleness(run)
    yield "Who was busy when", timeline(run)
    yield "Time and ledger", time_and_ledger(run)
    yield "Samples before and after", samples(run)
    yield "The game", game(run)
    yield "Configuration, environment, files", environment(run, base)


def curves(run: Run) -> str:
    """Draw what the lines of the run hold, evaluations first."""
    plots = [plot for chart in charts_of(run) if (plot := _plot(chart, run)) is not None]
    if not plots:
        return svg.paragraph("The run has recorded nothing that could be drawn.", "quiet")
    faint = any(line.noisy and len(line.points) >= SMOOTHED for plot in plots for line in plot.lines)
    note = "Values of single updates are faint; the line over them is their running mean." if faint else ""
    drawn = "".join(map(plot_figure, plots))
    return f'{svg.paragraph(note, "quiet") if note else ""}<div class="plots">{drawn}</div>'


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


def _plot(chart: Chart, run: Run) -> Plot | None:
    lines = lines_of(chart, run)
    if not lines:
        return None
    return Plot(title=chart.title, note=chart.note, lines=lines, level=chart.level)


def _bounds(chart: Chart, run: Run) -> dict[float, tuple[float, float]]:
    if chart.bounds is None:
        return {}
    low, high = (dict(run.column(name)) for name in chart.bounds)
    return {x: (low[x], high[x]) for x in low.keys() & high.keys()}


def staleness(run: Run) -> str:
    """Draw the ages of what was trained on, beside the bound."""
    told = run.section("staleness").get("histogram")
    counts = {int(age): int(n) for age, n in told.items() if n} if isinstance(told, Mapping) else {}
    source = "groups consumed at each staleness, % of all, from summary.json"
    if not counts:
        counts, source = staleness_of(run), "groups consumed at each staleness, % of all, from the journal"
    if not counts:
        return svg.paragraph("The run has not recorded how stale its groups were.", "quiet")
    drawn = [histogram_figure("Staleness of the groups", source, counts, run.bound)]
    opponents = run.section("opponent_staleness").get("histogram")
    if isinstance(opponents, Mapping) and opponents:
        bound = run.summary.get("opponent_bound")
        bound = bound if isinstance(bound, int) else run.bound
        own = {int(age): int(n) for age, n in opponents.items()}
        drawn.append(histogram_figure("Staleness of their opponents", source, own, bound))
    return f'<div class="plots">{"".join(drawn)}</div>'


def timeline(run: Run) -> str:
    """Draw what the lines of the run tell of who was busy when; say what they do not tell."""
    lanes, seconds = lanes_of(run)
    if not lanes:
        return svg.paragraph("The run has recorded no times of its updates.", "quiet")
    note = "time since the first update began; the learner's share is taken between the ends of updates"
    lacking = ""
    if run.setting("generators") is not None:
        lacking = svg.paragraph(
            "Single times of generators and judges are not recorded; their totals are in the next section.", "quiet"
        )
    return timeline_figure("Activity", note, lanes, seconds) + lacking


def time_and_ledger(run: Run) -> str:
    """Draw the time budget; list what became of every prompt."""
    roles = {
        str(role): {str(name): value for name, each in own.items() if (value := finite(each)) is not None}
        for role, own in run.section("time_budget").items()
        if isinstance(own, Mapping)
    }
    roles = {role: own for role, own in roles.items() if sum(own.values()) > 0.0}
    if not roles and not run.section("ledger"):
        return svg.paragraph("Neither time nor ledger is recorded: both are written when a run ends.", "quiet")
    note = "shares of each role's seconds, summed over its actors, since the last resume"
    figure = budget_figure("Time by role", note, roles) if roles else ""
    return f'{figure}<div class="two"><div>{_seconds(roles)}</div><div>{_ledger(run.section("ledger"))}</div></div>'


def _seconds(roles: Mapping[str, Mapping[str, float]]) -> str:
    if not roles:
        return svg.paragraph("No time budget is recorded.", "quiet")
    rows = [
        (f"{role}: {activity}", f"{seconds:,.1f} s", f"{seconds / sum(own.values()):.0%}")
        for role, own in roles.items()
        for activity, seconds in own.items()
    ]
    return "<h3>Seconds</h3>" + svg.table((), rows)


def _ledger(ledger: Mapping[str, Any]) -> str:
    if not ledger:
        return svg.paragraph("No ledger is recorded.", "quiet")
    try:
        broken = imbalance(ledger)
        told = f"It does not balance: {broken}." if broken else "It balances: every prompt and grant is in it once."
    except (KeyError, TypeError, AttributeError):
        told = "It lacks accounts, so whether it balances is not known."
    return "<h3>Ledger</h3>" + svg.table((), _accounts(ledger)) + svg.paragraph(told, "quiet")


def _accounts(ledger: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in ledger.items():
        if isinstance(value, Mapping):
            yield name.replace("_", " "), f"{sum(value.values()):,}"
            yield from ((f"{name.replace('_', ' ')}: {reason}", f"{count:,}") for reason, count in value.items())
        else:
            yield name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value)


def samples(run: Run) -> str:
    """Show completions early and late, with their judgements."""
    found = read_samples(run)
    shown = "".join(_sample(before, after) for before, after in found.pairs)
    lacking = "Completions of the evaluations are not recorded." if run.setting("generators") is not None else ""
    return svg.paragraph(f"{found.note} {lacking}".strip(), "quiet") + shown


def _sample(before: Sample | None, after: Sample | None) -> str:
    told = before or after
    assert told is not None
    said = "".join(_said(each, kind) for each, kind in ((before, ""), (after, "after")) if each is not None)
    return f'<div class="sample">{_folded(told.prompt, "prompt")}<div class="two">{said}</div></div>'


def _said(sample: Sample, kind: str) -> str:
    judged = "not judged" if sample.score is None else f"score {number(sample.score)}"
    judged += "" if sample.others is None else f", {number(sample.others)} on average in its group"
    end = "" if sample.finished else ", cut off"
    when = f'<span class="when">{svg.text(f"{sample.when}: {judged}{end}")}</span>'
    return f'<div class="said {kind}">{when}{_folded(sample.text)}</div>'


def _folded(content: str, kind: str = "") -> str:
    """Return a text, its end folded away if it is long."""
    if len(content) <= MOST_TEXT:
        return svg.paragraph(content or "(empty)", kind)
    rest = svg.details(
        f"{len(content) - MOST_TEXT:,} more characters", f"<p>{svg.text(content[MOST_TEXT:], LONGEST_TEXT)}</p>"
    )
    return svg.paragraph(f"{content[:MOST_TEXT]}…", kind) + rest


def game(run: Run) -> str:
    """Draw the triangle of families, exploitability's meaning, and win rate against KL."""
    parts = [each for each in (_triangle(run), front([run])) if each]
    said = ""
    if (value := exploitability_of(run)) is not None:
        said = f"The best answer to the policy wins {0.5 + value:.0%} of the time (exploitability {number(value)})."
    elif not _family_points(run):
        said = "The game of this run is not known by enumeration, so it has neither exploitability nor a triangle."
    if not front([run]):
        said += " No evaluation recorded both win rate and KL."
    return (svg.paragraph(said.strip(), "quiet") if said else "") + f'<div class="plots">{"".join(parts)}</div>' * bool(
        parts
    )


def _family_points(run: Run) -> list[tuple[float, float, float]]:
    """Return the shares of the three families, evaluation by evaluation."""
    points = []
    for row in run.rows:
        first, second, third = (finite(row.get(f"family_{n}")) for n in range(3))
        if first is None or second is None or third is None:
            continue
        if min(first, second, third) >= 0.0 and first + second + third > 0.0:
            points.append((first, second, third))
    return points


def _triangle(run: Run) -> str:
    return triangle([run])


def triangle(runs: Sequence[Run]) -> str:
    """Draw the families of every run that has them; empty if none has."""
    curves = []
    for run in runs:
        points = _family_points(run)
        step = -(-len(points) // 300) if points else 1
        if points:
            curves.append(Curve(run.name, [*points[:-1:step], points[-1]]))
    note = "shares of the three families of answers, from a ring to a dot; in the middle no family beats the policy"
    return triangle_figure("Families of answers", note, curves) if curves else ""


def front(runs: Sequence[Run]) -> str:
    """Draw win rate against KL, evaluation by evaluation; empty if no run has both."""
    lines = []
    for number_, run in enumerate(runs):
        rates, kls = dict(run.column("win_rate")), dict(run.column("kl"))
        low, high = dict(run.column("win_rate_low")), dict(run.column("win_rate_high"))
        points, bounds = [], {}
        for step in sorted(rates.keys() & kls.keys()):
            points.append((kls[step], rates[step]))
            if step in low and step in high:
                bounds[kls[step]] = (low[step], high[step])
        last, kl = win_rate_of(run), run.figure("kl")
        if last is not None and kl is not None and (kl, last.value) not in points:
            points.append((kl, last.value))
            if last.low is not None and last.high is not None:
                bounds[kl] = (last.low, last.high)
        if points:
            lines.append(Line(run.name, thinned(points, 40), number_, bounds))
    if not lines:
        return ""
    note = "of evaluations, from first to last, with 95% intervals over prompts"
    x_label = "KL to the reference (nats per completion)"
    plot = Plot(
        title="Win rate against KL", note=note, lines=lines, x_label=x_label, updates=False, level=(0.5, "even")
    )
    return plot_figure(plot)


def environment(run: Run, base: Path) -> str:
    """Fold the configuration away; list versions, machine and files."""
    config = svg.paragraph("There is no configuration.", "quiet")
    if run.config_text:
        config = svg.details("config.yaml", f"<pre>{svg.text(run.config_text, LONGEST_CONFIG)}</pre>")
    facts = [(str(name), value) for name, value in run.section("versions").items()]
    identity = run.files.run_id
    facts = [*([("run", identity)] if identity else []), *facts]
    listed = svg.table((), facts, numbers=False) if facts else ""
    machine = "The run does not record its machine." if facts else "Neither versions nor machine are recorded."
    return config + listed + svg.paragraph(machine, "quiet") + "<h3>Files</h3>" + links(run, base)


def links(run: Run, base: Path) -> str:
    """List the run's files as links relative to `base`."""
    found = [name for name in PATHS if (run.files.path / name).exists()]
    if not found:
        return svg.paragraph("There are none.", "quiet")
    items = []
    for name in found:
        is_directory = (run.files.path / name).is_dir()
        target = os.path.relpath(run.files.path.resolve() / name, base.resolve())
        address = svg.text(quote(target + "/" * is_directory), WHOLE)
        items.append(f'<li><a href="{address}">{svg.text(name + "/" * is_directory)}</a></li>')
    return f"<ul>{''.join(items)}</ul>"


def _error(run: Run) -> str:
    if not run.error_text or run.status != "failed":
        return ""
    return svg.details("error.txt", f"<pre>{svg.text(run.error_text[-LONGEST_TEXT:], LONGEST_TEXT)}</pre>")


def kl_text(run: Run) -> str:
    """Return KL to the reference, or a dash."""
    kl = kl_of(run)
    return "-" if kl is None else number(kl)
