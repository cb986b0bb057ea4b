"""The sections of one run's report, each as HTML. A section without data says so in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from actors.foreign.text import WHOLE
from actors.replay_buffer.ledger import imbalance
from launch.demo.triangle import Curve
from launch.report.charts import Chart, charts_of, lines_of
from launch.report.drawing import svg
from launch.report.drawing.diagrams import budget_figure, histogram_figure, timeline_figure, triangle_figure
from launch.report.drawing.plots import Line, Plot, plot_figure
from launch.report.drawing.series import SMOOTHED, number, thinned
from launch.report.records import Run, finite
from launch.report.samples import Sample, read_samples, staleness_of
from launch.report.timeline import lanes_of
from launch.report.verdict import exploitability_of, kl_of, verdict, win_rate_of

MOST_TEXT = 600
"""Characters of a sample that are shown before the rest is folded away."""
LONGEST_TEXT = 20_000  # characters of a sample, of the configuration and of a traceback at most
LONGEST_CONFIG = 200_000
PATHS = (
    "final", "final-average", "start", "checkpoints", "metrics.jsonl", "summary.json", "config.yaml", "journal",
    "tensorboard", "evaluation", "failed_batches", "error.txt", "hangs.txt",
)  # fmt: skip


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
    """Yield title and content of every section; links are relative to `base`. A stage generates and judges nothing."""
    yield "Curves", curves(run)
    if not run.is_stage:
        yield "Staleness", staleness(run)
    yield "Who was busy when", timeline(run)
    if not run.is_stage:
        yield "Time and ledger", time_and_ledger(run)
        yield "Samples before and after", samples(run)
        if drawn := game(run):
            yield game_title([run]), drawn
    yield "Configuration, environment, files", environment(run, base)


def curves(run: Run) -> str:
    """Draw the figures of the run's lines, evaluations first."""
    plots = [plot for chart in charts_of(run) if (plot := _plot(chart, run)) is not None]
    if not plots:
        return svg.paragraph("The run has recorded nothing that could be drawn.", "quiet")
    faint = any(line.noisy and len(line.points) >= SMOOTHED for plot in plots for line in plot.lines)
    note = "Values of single updates are faint; the line over them is their running mean." if faint else ""
    drawn = "".join(map(plot_figure, plots))
    return f'{svg.paragraph(note, "quiet") if note else ""}<div class="plots">{drawn}</div>'


def _plot(chart: Chart, run: Run) -> Plot | None:
    lines = lines_of(chart, run)
    if not lines:
        return None
    return Plot(title=chart.title, note=chart.note, lines=lines, level=chart.level)


def staleness(run: Run) -> str:
    """Draw the ages of the trained groups, beside the bound."""
    counts = _ages(run.section("staleness"))
    source = "groups consumed at each staleness, % of all, from summary.json"
    if not counts:
        counts, source = staleness_of(run), "groups consumed at each staleness, % of all, from the journal"
    if not counts:
        return svg.paragraph("The run has not recorded how stale its groups were.", "quiet")
    drawn = [histogram_figure("Staleness of the groups", source, counts, run.bound)]
    if opponents := _ages(run.section("opponent_staleness")):
        bound = run.summary.get("opponent_bound")
        bound = bound if isinstance(bound, int) else run.bound
        drawn.append(histogram_figure("Staleness of their opponents", source, opponents, bound))
    return f'<div class="plots">{"".join(drawn)}</div>'


def _ages(told: Mapping[str, Any]) -> dict[int, int]:
    """Return groups by staleness, from the summary's histogram."""
    histogram = told.get("histogram")
    if not isinstance(histogram, Mapping):
        return {}
    return {int(age): int(n) for age, n in histogram.items() if str(age).isdecimal() and finite(n) and n > 0}


def timeline(run: Run) -> str:
    """Draw the timeline of the roles' work; name the roles without records."""
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
        account = str(name).replace("_", " ")
        if isinstance(value, Mapping):
            counts = {reason: count for reason, each in value.items() if (count := finite(each)) is not None}
            yield account, f"{sum(counts.values()):,.0f}"
            yield from ((f"{account}: {reason}", f"{count:,.0f}") for reason, count in counts.items())
        else:
            yield account, f"{value:,}" if isinstance(value, int | float) else str(value)


def samples(run: Run) -> str:
    """Show completions early and late, with their judgements."""
    found = read_samples(run)
    shown = "".join(_sample(before, after) for before, after in found.pairs)
    return svg.paragraph(found.note, "quiet") + shown


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
    """Draw the triangle of families, exploitability's meaning, and win rate against KL; empty if none is known."""
    parts = [each for each in (_triangle(run), front([run])) if each]
    said = ""
    if (value := exploitability_of(run)) is not None:
        best = f"The best answer to the policy wins {0.5 + value:.0%} of the time (exploitability {number(value)})."
        said = svg.paragraph(best, "quiet")
    return said + f'<div class="plots">{"".join(parts)}</div>' * bool(parts)


def game_title(runs: Sequence[Run]) -> str:
    """Return the title over the game of these runs; most runs play none that is known."""
    known = any(_family_points(run) or exploitability_of(run) is not None for run in runs)
    return "The game" if known else "Win rate and KL"


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
    """Draw win rate against KL, evaluation by evaluation; empty if fewer than two have both."""
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
    if sum(len(line.points) for line in lines) < 2:
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
