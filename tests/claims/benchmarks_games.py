"""Numbers of docs/benchmarks.md about exploitability: routes, opponents and staleness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import Claim, found, of

PAGE = "docs/benchmarks.md"
Run = Callable[[Any], dict[str, Any]]

# ---------------------------------------------------------------- Nash-MD and a Bradley-Terry reward

nash = of(PAGE, "nash.json")


def run(row: str, seed: int, setting: str, updates: int) -> Run:
    """Pick the run of a row, seed and number of updates that had `setting`."""

    def pick(raw: Any) -> dict[str, Any]:
        (only,) = (
            each
            for each in raw["runs"]
            if (each["row"], each["seed"], each["updates"]) == (row, seed, updates) and setting in each["settings"]
        )
        return only

    return pick


BRADLEY_TERRY, DEEP = (
    [run(row, seed, setting, updates) for seed in (0, 1)]
    for row, setting, updates in (
        ("bradley-terry", "replay.prompts_per_update=64", 200),
        ("nash-md", "sampling.completions_per_prompt=16", 500),
    )
)
OPPONENTS = {kind: run(f"opponent-{kind}", 0, f"opponent.kind={kind}", 500) for kind in ("self", "mixture", "ema")} | {
    "weighted": DEEP[0]
}


def of_run(pick: Run, *path: str) -> Callable[[Any], float]:
    return lambda raw: found(pick(raw), "/".join(path))


def of_bradley_terry(seed: int) -> Callable[[Any], float]:
    return lambda raw: DEEP[seed](raw)["exploitability_tail"] / BRADLEY_TERRY[seed](raw)["exploitability_tail"]


def routes(name: str, bold: str, target: str, runs: list[Run]) -> list[Claim]:
    """Make the rows of one route, a seed each."""
    return [
        nash(
            f"| {name} | {seed} | {bold}{{exploitability:.3f}}{bold} | {{targets/{seed}/{target}/exploitability:.3f}} "
            f"| {{kl:.2f}} | {{targets/{seed}/{target}/kl:.2f}} | {{preferred:.3f}} |",
            exploitability=of_run(pick, "exploitability_tail"),
            kl=of_run(pick, "kl_tail"),
            preferred=of_run(pick, "preference"),
        )
        for seed, pick in enumerate(runs)
    ]


ROUTES = [
    nash("tau ({targets/0/bradley_terry_tau:.3f} and {targets/1/bradley_terry_tau:.3f}) gives its exact optimum"),
    nash("| start (SFT) | 0 / 1 | {targets/0/start_exploitability:.3f} / {targets/1/start_exploitability:.3f} |"),
    *routes("Bradley-Terry", "", "bradley_terry", BRADLEY_TERRY),
    *routes("**Nash-MD**", "**", "nash_md", DEEP),
    nash(
        "Nash-MD leaves {seed_0:.2f} and {seed_1:.2f} of the Bradley-Terry route's exploitability",
        seed_0=of_bradley_terry(0),
        seed_1=of_bradley_terry(1),
    ),
    nash(
        "exploitability is {weighted:.3f} with `weighted`, {self:.3f} with `self`, {mixture:.3f} with `mixture`, which "
        "has half as many opponents, and {ema:.3f} with `ema`",
        **{kind: of_run(pick, "exploitability_tail") for kind, pick in OPPONENTS.items()},
    ),
]

# ---------------------------------------------------------------- equal wall time

SECONDS, WINDOW = 380.0, 30.0


def watched(row: str, number: Callable[[list[list[float]]], float]) -> Callable[[Any], float]:
    """Compute `number` of a run's evaluations in the last `WINDOW` of its first `SECONDS`."""

    def value(raw: Any) -> float:
        (run,) = (each for each in raw["runs"] if each["row"] == row)
        timed = zip(run["curve"], run["curve_seconds"], strict=True)
        return number([point for point, seconds in timed if SECONDS - WINDOW <= seconds <= SECONDS])

    return value


def exploitability(points: list[list[float]]) -> float:
    return sum(point[1] for point in points) / len(points)


EQUAL_TIME = [
    of(PAGE, "nash_time.json")(
        "In {seconds:.0f} s Nash-MD with a bound of 64 made {old:.0f} updates, on samples at most "
        "{runs/row=lag-64/staleness/max} versions old, and {fresh:.0f} synchronously (`nash lag-64 lag-0`, one run "
        "each). Exploitability was {old_ends:.3f} and {fresh_ends:.3f} over the last {window:.0f} s.",
        seconds=lambda raw: SECONDS,
        window=lambda raw: WINDOW,
        old=watched("lag-64", lambda points: points[-1][0]),
        fresh=watched("lag-0", lambda points: points[-1][0]),
        old_ends=watched("lag-64", exploitability),
        fresh_ends=watched("lag-0", exploitability),
    )
]

# ---------------------------------------------------------------- bound 0

ON_POLICY = [
    of(PAGE, "on_policy.json")(
        "Over {ledger/trained:,} groups the largest difference of any token was {largest} nats",
        at="summary",
        largest=lambda summary: f"{summary['log_ratio_max']:.1e}".replace("e-0", "e-"),
    ),
]

CLAIMS = [*ROUTES, *EQUAL_TIME, *ON_POLICY]
