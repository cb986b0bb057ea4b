"""Numbers of docs/benchmarks.md about exploitability: routes, opponents, staleness and the demo."""

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


BRADLEY_TERRY, WIDE, DEEP = (
    [run(row, seed, setting, updates) for seed in (0, 1)]
    for row, setting, updates in (
        ("bradley-terry", "replay.prompts_per_update=64", 200),
        ("nash-md", "replay.prompts_per_update=64", 500),
        ("nash-md", "sampling.completions_per_prompt=16", 500),
    )
)
OPPONENTS = {kind: run(f"opponent-{kind}", 0, f"opponent.kind={kind}", 500) for kind in ("self", "mixture", "ema")} | {
    "weighted": DEEP[0]
}
FOLLOWED = run("opponent-reference", 0, "updates=120", 120)
"""For a few updates only."""


def of_run(pick: Run, *path: str) -> Callable[[Any], float]:
    return lambda raw: found(pick(raw), "/".join(path))


def above_exact(seed: int, pick: Run) -> Callable[[Any], float]:
    """Compute by how much a run's exploitability exceeds its exact fixed point's."""
    return lambda raw: pick(raw)["exploitability_tail"] - found(raw, f"targets/{seed}/nash_md/exploitability")


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


def opponent(kind: str, exact: str) -> Claim:
    bold = "**" if kind == "weighted" else ""
    return nash(
        f"| `{kind}` | {bold}{{exploitability:.3f}}{bold} | {{targets/0/{exact}/exploitability:.3f}} | {{kl:.2f}} |",
        exploitability=of_run(OPPONENTS[kind], "exploitability_tail"),
        kl=of_run(OPPONENTS[kind], "kl_tail"),
    )


ROUTES = [
    nash("tau ({targets/0/bradley_terry_tau:.3f} and {targets/1/bradley_terry_tau:.3f}) gives its exact optimum"),
    nash("| start (SFT) | 0 / 1 | {targets/0/start_exploitability:.3f} / {targets/1/start_exploitability:.3f} |"),
    *routes("Bradley-Terry", "", "bradley_terry", BRADLEY_TERRY),
    *routes("**Nash-MD**, 32 prompts x 16", "**", "nash_md", DEEP),
    *routes("Nash-MD, 64 prompts x 8", "", "nash_md", WIDE),
    nash(
        "Nash-MD leaves {seed_0:.2f} and {seed_1:.2f} of the Bradley-Terry route's exploitability",
        seed_0=of_bradley_terry(0),
        seed_1=of_bradley_terry(1),
    ),
    nash(
        "of their exact fixed point ({seed_0:.3f}, {seed_1:.3f})",
        seed_0=above_exact(0, DEEP[0]),
        seed_1=above_exact(1, DEEP[1]),
    ),
    nash(
        "one does ({seed_0:.3f}) and one does not ({seed_1:.3f})",
        seed_0=above_exact(0, WIDE[0]),
        seed_1=above_exact(1, WIDE[1]),
    ),
    nash(
        "The best answer beats the reward's policy in {reward:.2f} of the comparisons, and Nash-MD's in {nash:.2f}",
        reward=lambda raw: 0.5 + BRADLEY_TERRY[0](raw)["exploitability_tail"],
        nash=lambda raw: 0.5 + DEEP[0](raw)["exploitability_tail"],
    ),
    nash(
        "tau {tau}, beta {beta}, opponents by weights",
        at="targets/0",
    ),
    nash("staleness bound 2 (mean {mean:.2f})", mean=of_run(DEEP[0], "staleness", "mean")),
    nash("Wall time: {seconds:.0f} s for the run of seed 0", seconds=of_run(WIDE[0], "wall_seconds")),
    nash("The start is at {targets/0/start_exploitability:.3f}. | learner.loss.opponent.kind"),
    opponent("weighted", "nash_md"),
    opponent("self", "nash"),
    opponent("mixture", "nash_md"),
    opponent("ema", "nash"),
    nash(
        "and was then at {reference:.3f}, above the start",
        reference=of_run(FOLLOWED, "exploitability_tail"),
    ),
]

# ---------------------------------------------------------------- staleness and its corrections

lag = of(PAGE, "lag.json")
TAIL = "| {updates} | {exploitability_tail:.3f} | {kl_tail:.2f} |"
BOLD_TAIL = TAIL.replace("{exploitability_tail:.3f}", "**{exploitability_tail:.3f}**")


def rise(row: str, of_row: str, updates: int) -> Callable[[Any], float]:
    """Compute by how much the exploitability of one row exceeds that of another."""
    return lambda raw: (
        found(raw, f"runs/row={row}&updates={updates}/exploitability_tail")
        - found(raw, f"runs/row={of_row}&updates={updates}/exploitability_tail")
    )


LAGS = [
    nash(
        "the exact fixed point is {nash_md/exploitability:.3f}, the start {start_exploitability:.3f}. | lag",
        at="targets/0",
    ),
    *(
        lag(f"{settings} {figures}", at=f"runs/row={row}&updates={updates}")
        for row, updates, settings, figures in (
            (
                "lag-0-uncorrected",
                400,
                "| 0 | uncorrected: self-play, constant baseline, no weights",
                TAIL,
            ),
            ("lag-64-uncorrected", 400, "| 64 | uncorrected", BOLD_TAIL),
            ("lag-0", 400, "| 0 | defaults: weighted opponents, leave-one-out, KL of the sequence", TAIL),
            ("lag-64", 400, "| 64 | defaults", TAIL),
            ("lag-64-weighted-players", 400, "| 64 | defaults and weighted players", TAIL),
            (
                "lag-64-fresh",
                400,
                "| 64 | defaults, 8 opponents drawn apart from the newest policy",
                TAIL,
            ),
            ("lag-0", 600, "| 0 | defaults", TAIL),
            ("lag-16", 600, "| 16 | defaults", TAIL),
            ("lag-64", 600, "| 64 | defaults", BOLD_TAIL),
            (
                "lag-64-token-players",
                600,
                "| 64 | token weights of players, reward-to-go",
                TAIL,
            ),
        )
    ),
    lag(
        "a lag of 64 updates costs {cost:.2f} of exploitability",
        cost=rise("lag-64-uncorrected", "lag-0-uncorrected", 400),
    ),
    lag("are {more:.3f} above their own lag 0 after 400 updates", more=rise("lag-64", "lag-0", 400)),
]

# ---------------------------------------------------------------- the demo

demo = of(PAGE, "demo_time.json")


def busy(raw: Any) -> float:
    """Compute the seconds in which Nash-MD's generator sampled or took weights."""
    budget = found(raw, "rounds/0/now/routes/nash-md/budget/generator")
    return budget["generating"] + budget["updating"]


def minutes(path: str, form: str) -> Callable[[Any], str]:
    """Write seconds as minutes and seconds."""
    return lambda raw: form.format(*divmod(round(found(raw, path)), 60))


DEMO = [
    demo("`offbeat demo` takes {time} on the same machine alone", time=minutes("rounds/0/now/seconds", "{} min {} s")),
    demo(
        "Nash-MD ends at an exploitability of {nash-md/exploitability:.3f} and a KL of "
        "{nash-md/exact_kl:.2f} nats, the "
        "Bradley-Terry route at {bradley-terry/exploitability:.3f} and {bradley-terry/exact_kl:.2f} nats, "
        "where its exact "
        "optimum is {bradley-terry/target_exploitability:.3f} at {bradley-terry/target_kl:.2f}. Nash-MD trains at "
        "{nash-md/groups_per_second:.0f} groups per second",
        at="rounds/0/now/routes",
    ),
    demo(
        "the demo takes {seconds now / before:.3f} of the time. The learner's updates are "
        "{learner of bradley-terry, before / now:.2f} times as fast on the Bradley-Terry route, and "
        "{learner of nash-md, before / now:.2f} times for Nash-MD.",
        at="median",
    ),
    demo("it works for {busy:.0f} of the {rounds/0/now/routes/nash-md/seconds:.0f} s that Nash-MD takes", busy=busy),
]

CLAIMS = [*ROUTES, *LAGS, *DEMO]
