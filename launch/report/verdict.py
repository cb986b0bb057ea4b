"""Sum a run up in a few sentences that claim no more than its intervals do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from actors.foreign.text import many
from launch.output.board import clock
from launch.report.drawing.series import number
from launch.report.records import Run, finite
from launch.report.samples import staleness_of

Outcome = Literal["better", "worse", "not separable", "mixed", "not measured"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% interval over prompts, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        return "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"

    def outcome(self, neutral: float) -> Outcome:
        """Compare with the value of no change; an interval that includes it, or none, separates nothing."""
        if self.low is None or self.high is None or self.low <= neutral <= self.high:
            return "not separable"
        return "better" if self.low > neutral else "worse"


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return `other` less `one`, with the interval that follows from theirs if they are independent (Newcombe 1998)."""
    value = other.value - one.value
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Estimate(value)
    below = math.hypot(other.value - other.low, one.high - one.value)
    above = math.hypot(other.high - other.value, one.value - one.low)
    return Estimate(value, value - below, value + above)


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on whether the policy got better, and what it comes to."""

    sentence: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a run: its end, the gain of its policy, and the staleness of its data."""

    status: str
    outcome: Outcome
    sentences: tuple[str, ...]


def verdict(run: Run) -> Verdict:
    """Judge one run by its records."""
    findings = [found for found in (_win_rate(run), _reward(run), _exploitability(run), _held_out(run)) if found]
    kinds = {found.outcome for found in findings} - {"not measured"}
    decided = kinds - {"not separable"}
    outcome: Outcome = "mixed" if len(decided) > 1 else next(iter(decided or kinds), "not measured")
    said = [found.sentence for found in findings]
    silent = "A replay evaluates nothing" if run.replayed else "Nothing was evaluated yet"
    said = said or [f"{silent}, so the record does not say whether the policy got better."]
    return Verdict(run.status, outcome, tuple(filter(None, (_status(run), *said, _staleness(run)))))


def win_rate_of(run: Run) -> Estimate | None:
    """Return the win rate of the last evaluation; during a run that of the lines."""
    if (found := _estimate(run.section("win_rate"), "value")) is not None:
        return found
    for row in reversed(run.rows):
        if (value := finite(row.get("win_rate"))) is not None:
            return Estimate(value, finite(row.get("win_rate_low")), finite(row.get("win_rate_high")))
    return None


def rise_of(run: Run) -> Estimate | None:
    """Return how far the judge's mean score rose on the evaluation prompts."""
    return _estimate(run.section("reward"), "rise")


def exploitability_of(run: Run) -> float | None:
    """Return the mean of the last tenth of the updates, else the last value."""
    told = run.figure("exploitability_tail")
    told = run.figure("exploitability") if told is None else told
    column = run.column("exploitability")
    return column[-1][1] if told is None and column else told


def kl_of(run: Run) -> float | None:
    """Return KL to the reference (nats per completion): exact if the game is known, else as estimated."""
    exact = run.figure("exact_kl")
    return run.figure("kl") if exact is None else exact


def largest_staleness(run: Run) -> tuple[int | None, float | None]:
    """Return the largest and the mean staleness (versions) of what was trained on; None where it is not recorded."""
    told = run.section("staleness")
    largest, mean = finite(told.get("max")), finite(told.get("mean"))
    if largest is None and (counts := staleness_of(run)):
        total = sum(counts.values())
        return max(counts), sum(age * count for age, count in counts.items()) / total
    if largest is None and (column := run.column("staleness_max")):
        return int(max(value for _, value in column)), None
    return (None if largest is None else int(largest)), mean


def _estimate(told: Mapping[str, object], name: str) -> Estimate | None:
    value = finite(told.get(name))
    return None if value is None else Estimate(value, finite(told.get("low")), finite(told.get("high")))


def _status(run: Run) -> str:
    model, loss = run.setting("model.path"), run.loss
    named = "the world's policy" if model == "world" else f"{model}" if model else "a model"
    what = f"{named} with the loss {loss}" if loss else named
    seconds = run.figure("wall_seconds")
    took = "" if seconds is None else f" in {clock(seconds)}"
    done = (
        f"{run.updates:,} of {many(run.planned, 'update')}" if run.planned is not None else many(run.updates, "update")
    )
    if run.status == "replayed":
        return f"It is a replay of {run.replayed}: it trained {what}, {done}."
    if run.status == "completed":
        return f"The run completed: it trained {what}, {done}{took}."
    if run.status == "interrupted":
        return f"The run was interrupted: it trained {what}, {done}{took}. It can be resumed."
    if run.status == "failed":
        cause = _cause(run)
        return f"The run failed after {done} of training {what}: {cause}{'' if cause.endswith('.') else '.'}"
    if run.status == "running":
        return f"The run is going on: it trains {what}, {done} so far."
    if unread := next((each for each in run.missing if each.startswith("summary.json cannot")), ""):
        return f"How the run ended is not known, because its {unread} It trained {what}, {done}."
    return f"The run left no summary: it trained {what}, {done}, and was ended before it could say why."


def _cause(run: Run) -> str:
    """Return the first line of what ended a run; of a traceback the last."""
    told = [line for line in str(run.summary.get("error") or "").splitlines() if line.strip()]
    traced = [line for line in run.error_text.splitlines() if line.strip()]
    return (told[:1] or traced[-1:] or ["it does not say why"])[0]


def _win_rate(run: Run) -> Finding | None:
    rate = win_rate_of(run)
    if rate is None:
        return None
    opponent, value = run.summary.get("opponent") or "the starting policy", f"win rate {number(rate.value)}"
    if rate.low is None:
        return Finding(f"Its {value} against {opponent} has no interval, so nothing follows from it.", "not separable")
    outcome = rate.outcome(0.5)
    told = {"better": f"beats {opponent}", "worse": f"loses to {opponent}"}
    said = told.get(outcome, f"is not separable from {opponent}")
    why = "" if outcome != "not separable" else ", which includes 0.5"
    return Finding(f"Its policy {said}: {value}{rate.interval}{why} (95% interval over prompts).", outcome)


def _reward(run: Run) -> Finding | None:
    rise = rise_of(run)
    if rise is None or exploitability_of(run) is not None:
        return None  # a game that is known has better figures
    start, end = finite(run.section("reward").get("start")), finite(run.section("reward").get("value"))
    levels = "" if start is None or end is None else f" from {number(start)} to {number(end)}"
    outcome = rise.outcome(0.0)
    if outcome == "not separable":
        why = f"{rise.interval} includes 0" if rise.interval else "has no interval"
        text = f"The judge's mean score went{levels}; the rise of {number(rise.value)}{' ' * (not rise.interval)}{why}"
        return Finding(f"{text}, so it is not separable from none.", outcome)
    verb = "rose" if outcome == "better" else "fell"
    return Finding(f"The judge's mean score {verb} by {number(abs(rise.value))}{levels}, rise{rise.interval}.", outcome)


def _exploitability(run: Run) -> Finding | None:
    end = exploitability_of(run)
    if end is None:
        return None
    first = run.column("exploitability")[:1]
    if not first or first[0][0] >= run.updates:
        return Finding(f"Its exploitability is {number(end)}, by enumeration; 0 is unbeatable.", "not measured")
    step, start = first[0]
    text = f"Its exploitability went from {number(start)} after update {step:g} to {number(end)}"
    how = " (by enumeration, so without sampling error; 0 is unbeatable)"
    last = [value for at, value in run.column("exploitability") if at > 0.9 * run.updates]
    if start == end or min(last, default=end) <= start <= max(last, default=end):
        return Finding(f"{text}, within what its last updates vary by, so it is not separable{how}.", "not separable")
    return Finding(f"{text}{how}.", "better" if end < start else "worse")


def _held_out(run: Run) -> Finding | None:
    """Sum up a stage, which has a held-out loss."""
    column = run.column("held_out_loss")
    start = finite(run.section("held_out_at_start").get("loss"))
    start = column[0][1] if start is None and column else start
    end = finite(run.section("held_out").get("loss"))
    end = column[-1][1] if end is None and column else end
    if start is None or end is None:
        return None
    text = f"Its held-out loss went from {number(start)} to {number(end)}; the run records no interval for it."
    return Finding(text, "not separable")


def _staleness(run: Run) -> str | None:
    if run.is_stage:
        return None
    largest, mean = largest_staleness(run)
    if largest is None:
        allowed = f"{run.bound} {'version is' if run.bound == 1 else 'versions are'} allowed"
        return None if run.bound is None else f"Nothing says how stale its data were; {allowed}."
    if largest == run.bound == 0:
        return "Every update trained on what its own policy had sampled, as its bound of 0 demands."
    average = "" if mean is None else f", {mean:.2f} on average"
    oldest = f"Its data were at most {largest} {'version' if largest == 1 else 'versions'} old{average}"
    if run.bound is None:
        return f"{oldest}."
    over = " That is over the bound." if largest > run.bound else ""
    return f"{oldest}, and {run.bound} {'is' if run.bound == 1 else 'are'} allowed.{over}"
