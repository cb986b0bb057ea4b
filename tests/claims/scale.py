"""Numbers of docs/scale.md: measured, simulated, and computed from these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import FORMS, Claim, found, of

PAGE = "docs/scale.md"
shards = of(PAGE, "shards.json")
driver = of(PAGE, "driver.json")

GROUPS, PROMPTS, SHARDS = 20_000, 80_000, 16
"""The page's cluster: groups a second of all generators, prompts in a version, coordinators."""

# ---------------------------------------------------------------- coordinators


def one(count: int, tokens: int, figure: str) -> Callable[[Any], float]:
    """Take a figure of one of `count` coordinators, with completions of `tokens` tokens."""
    return lambda raw: found(raw, f"coordinators/shards={count}&tokens={tokens}/{figure}")


def together(count: int) -> Callable[[Any], float]:
    """Compute what `count` coordinators carry, by the processor time of one; it may use only one core."""
    return lambda raw: count * one(count, 512, "groups_per_second")(raw)


def busy(count: int) -> Callable[[Any], float]:
    """Compute the share of `count` coordinators that all groups take, of what one carried."""
    return lambda raw: GROUPS / together(count)(raw)


COORDINATORS = [
    *(
        shards(
            f"| {count} | {{coordinators/shards={count}&tokens=128/generators:,}} | {{short:tens}} | {{long:tens}} "
            f"| {{coordinators/shards={count}&tokens=512/cpu_ms_per_group:.2f}} | {{all:tens}} |",
            short=one(count, 128, "groups_per_second"),
            long=one(count, 512, "groups_per_second"),
            all=together(count),
        )
        for count in (1, 4, 8, 16)
    ),
    driver(
        "alone, 1,000 generators gave {groups:tens} groups/s",
        groups=lambda raw: found(raw, "trials/generators=1000&rate=None/groups_per_second"),
    ),
    shards(
        "20,000 groups/s take D = 16 at {sixteen:.0%} of their processors; 8 would need {eight:.0%}",
        sixteen=busy(16),
        eight=busy(8),
    ),
    shards(
        "| {kb:.1f} KB each as pickled, measured: {all:.2f} GB/s in all",
        at="journal/tokens=512/pickled_bytes_per_group",
        kb=lambda size: size / 1e3,
        all=lambda size: size * GROUPS / 1e9,
    ),
]

# ---------------------------------------------------------------- journal


def written(scale: float) -> Callable[[Any], float]:
    """Compute what the journals of all groups take in a second, in units of `scale` bytes."""
    return lambda group: group["bytes_per_group"] * GROUPS / scale


JOURNAL = [
    shards(
        "| a group of 4 x 512 tokens on disk | {long:.1f} KB, measured; {short:.1f} KB for 4 x 128 |",
        long=lambda raw: found(raw, "journal/tokens=512/bytes_per_group") / 1e3,
        short=lambda raw: found(raw, "journal/tokens=128/bytes_per_group") / 1e3,
    ),
    shards(
        "| processor time to write it | {tokens=512/cpu_ms_per_group:.2f} ms, measured; "
        "{tokens=128/cpu_ms_per_group:.2f} ms for 4 x 128 |",
        at="journal",
    ),
    shards(
        "| all together | {mb:.0f} MB/s, {tb:.0f} TB a day, {cores:.1f} cores, computed |",
        at="journal/tokens=512",
        mb=written(1e6),
        tb=written(1e12 / 86_400),
        cores=lambda group: group["cpu_ms_per_group"] * GROUPS / 1e3,
    ),
    shards(
        "| one of 16 coordinators | {mb:.0f} MB/s; a version's part is an object of {part:.0f} MB each 4 s, computed |",
        at="journal/tokens=512",
        mb=written(SHARDS * 1e6),
        part=lambda group: group["bytes_per_group"] * PROMPTS / SHARDS / 1e6,
    ),
    shards(
        "{gb:.0f} GB at each coordinator for an hour",
        at="journal/tokens=512",
        gb=written(SHARDS * 1e9 / 3600),
    ),
    shards(
        "at most (S+1) B groups, {gb:.1f} GB in all,",
        at="journal/tokens=512",
        gb=lambda group: group["bytes_per_group"] * 5 * PROMPTS / 1e9,
    ),
]

# ---------------------------------------------------------------- what was simulated


def ages(run: Any) -> str:
    """Write the shares of the staleness of a simulated run."""
    shares = ((age, share) for age, share in sorted(run["staleness"].items()))
    return ", ".join(f"{age}: " + ("below 0.1%" if share < 5e-4 else f"{share:.1%}") for age, share in shares)


def wait(run: Any) -> str:
    """Write how long a group waits for its coordinator."""
    seconds = run["coordinator_seconds_per_group"]
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds:.1f} s"


def simulated(first: str, at: str, third: str) -> Claim:
    return shards(
        f"| {first} | {{groups_per_second:tens}} | {{idle_share:.1%}} | {third} | {{ages}} |",
        at=at,
        wait=wait,
        ages=ages,
    )


def alone(count: int) -> Callable[[Any], str]:
    return lambda raw: FORMS["tens"](together(count)(raw))


SIMULATED = [
    *(simulated(str(2**place), f"clusters/{place}", "{wait}") for place in (0, 2, 3, 4)),
    *(
        simulated(text, f"slow/{each}", "{part_spread_seconds:.1f} s")
        for text, each in (
            ("hears of versions 5 s late", "told 5 s late"),
            ("hears of versions 20 s late", "told 20 s late"),
            ("has a coordinator 4 times as slow", "coordinator 4 times as slow"),
            ("has generators 1.25 times as slow", "generators 1.25 times as slow"),
        )
    ),
    shards("without it they make {groups} groups/s", groups=alone(8)),
    shards(
        "makes {slow:.0f} groups/s instead of {groups:tens}, and so do the others: 16 x {slow:.0f} = {all:tens}",
        slow=lambda raw: one(16, 512, "groups_per_second")(raw) / 4,
        groups=one(16, 512, "groups_per_second"),
        all=lambda raw: 4 * one(16, 512, "groups_per_second")(raw),
    ),
]

CLAIMS = [*COORDINATORS, *JOURNAL, *SIMULATED]
