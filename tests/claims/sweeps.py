"""Numbers of docs/sweep.md and docs/plan.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import of, of_seeds, raw_result

# ---------------------------------------------------------------- a real model at several bounds

chat = of("docs/sweep.md", "chat_staleness.json")

CHAT_ROWS = {
    "loss=dpo,staleness=0": "| online DPO | 0 |",
    "loss=dpo,staleness=1": "| online DPO | 1 |",
    "loss=dpo,staleness=4": "| online DPO | 4 |",
    "loss=dpo,staleness=16": "| online DPO | 16 |",
    "loss=dpo-anchor,staleness=16": "| online DPO, anchor 0.4 | 16 |",
    "loss=dpo-anchor-8,staleness=1": "| online DPO, anchor 0.8 | 1 |",
    "loss=rloo,staleness=0": "| RLOO, 4 answers | 0 |",
    "loss=rloo,staleness=16": "| RLOO, 4 answers | 16 |",
}
"""Rows of the table by their names in the raw result, with their first cells."""


def runs_of(raw: Any, row: str) -> list[Any]:
    return sorted((each for each in raw["runs"] if each["row"] == row), key=lambda each: int(each["seed"]))


def rises(row: str) -> Callable[[Any], str]:
    """Write the rise of the reward with its interval, once for each seed."""
    return lambda raw: ", ".join(
        "{rise:.3f} [{low:.3f}, {high:.3f}]".format(**each["reward"]) for each in runs_of(raw, row)
    )


def kls(row: str) -> Callable[[Any], str]:
    return lambda raw: ", ".join(f"{each['kl']:.1f}" for each in runs_of(raw, row))


def wins(row: str, other: str) -> Callable[[Any], str]:
    """Write how often one row's models beat another's, once for each seed."""

    def value(raw: Any) -> str:
        found = []
        for each in sorted(raw["comparisons"], key=lambda each: int(each["seed"])):
            cell = each["win_rates"][each["models"].index(row)][each["models"].index(other)]
            found.append("{value:.3f} [{low:.3f}, {high:.3f}]".format(**cell))
        return " and ".join(found)

    return value


_, _, _, OLD, ANCHORED, *_ = CHAT_ROWS

CHAT = [
    *(chat(f"{cells} {{rise}} | {{kl}} |", rise=rises(row), kl=kls(row)) for row, cells in CHAT_ROWS.items()),
    chat("with one beat those without in {wins} of the comparisons", wins=wins(ANCHORED, OLD)),
]

# ---------------------------------------------------------------- a second task

short = of("docs/sweep.md", "short_solutions.json")

SHORT = [
    short("the mean score rises by {rise},", rise=rises("loss=dpo,staleness=0")),
    short("on samples 16 versions old by {rise},", rise=rises("loss=dpo,staleness=16")),
    short("the default there, by {rise}.", rise=rises("loss=dpo-anchor,staleness=16")),
]

# ---------------------------------------------------------------- what offbeat plan predicts

plan = of("docs/plan.md", "planning.json")


def speed(part: str, run: str, which: str) -> Callable[[Any], float]:
    return lambda raw: float(raw[part][run]["outcomes"][which]["groups_per_second"])


def speed_error(part: str, run: str) -> Callable[[Any], float]:
    return lambda raw: speed(part, run, "predicted")(raw) / speed(part, run, "measured")(raw) - 1.0


PLAN = [
    plan("of which driver, judge and Ray took {cores/others:.2f}."),
    plan(
        "the same run gave between {least:.0f} and {most:.0f} groups per second.",
        at="calibrating groups per second",
        least=lambda speeds: min(speeds.values()),
        most=lambda speeds: max(speeds.values()),
    ),
    plan(
        "the mean staleness was {measured/staleness/mean:.1f} versions instead of {predicted/staleness/mean:.1f}.",
        at="runs/1 generator, S = 8/outcomes",
    ),
    *(
        plan(
            f"| {name} | {{measured:.0f}} | {{predicted:.0f}} | {{error:+.0%}} | {{with_second:+.0%}} |",
            measured=speed("runs", name, "measured"),
            predicted=speed("runs", name, "predicted"),
            error=speed_error("runs", name),
            with_second=speed_error("runs_with_second", name),
        )
        for name in raw_result("planning.json")["runs"]
    ),
]

# ---------------------------------------------------------------- which loss bears old samples

robustness = of("docs/sweep.md", "robustness.json")


def at(loss: str, size: str, n: int, kind: str = "figures") -> Callable[[Any], str]:
    return of_seeds(f"size={size},loss={loss},n={n}", kind)


ROBUSTNESS = [
    robustness(
        "16 steps instead of 1 change its exploitability by {small}, {medium} and {large}, from the smallest model",
        **{size: at("dpo", size, 16, "differences") for size in ("small", "medium", "large")},
    ),
    robustness(
        "at {ppo_medium} and {ppo_large} instead of {dpo_medium} and {dpo_large}.",
        **{f"{loss}_{size}": at(loss, size, 16) for loss in ("ppo", "dpo") for size in ("medium", "large")},
    ),
    robustness(
        "in the largest model RLOO's is lowest, {rloo}.",
        rloo=at("rloo", "large", 64),
    ),
]

CLAIMS = [*CHAT, *SHORT, *PLAN, *ROBUSTNESS]
"""Numbers of both pages, each linked to the raw result that it was measured in."""
