"""Numbers of docs/scale.md: measured, simulated, and computed from these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import found, of

PAGE = "docs/scale.md"
shards = of(PAGE, "shards.json")

# ---------------------------------------------------------------- coordinators


def one(count: int, tokens: int, figure: str) -> Callable[[Any], float]:
    """Take a figure of one of `count` coordinators, with completions of `tokens` tokens."""
    return lambda raw: found(raw, f"coordinators/shards={count}&tokens={tokens}/{figure}")


def together(count: int) -> Callable[[Any], float]:
    """Compute what `count` coordinators carry, by the processor time of one; it may use only one core."""
    return lambda raw: count * one(count, 512, "groups_per_second")(raw)


COORDINATORS = [
    shards(
        f"| {count} | {{coordinators/shards={count}&tokens=512/generators:,}} | {{one:tens}} "
        f"| {{coordinators/shards={count}&tokens=512/cpu_ms_per_group:.2f}} | {{all:tens}} |",
        one=one(count, 512, "groups_per_second"),
        all=together(count),
    )
    for count in (1, 8, 16)
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


SIMULATED = [
    *(
        shards(
            f"| {2**place} | {{groups_per_second:tens}} | {{idle_share:.1%}} | {{wait}} | {{ages}} |",
            at=f"clusters/{place}",
            wait=wait,
            ages=ages,
        )
        for place in (3, 4)
    ),
    shards(
        "four times as slow, the whole makes {groups_per_second:tens} groups/s", at="slow/coordinator 4 times as slow"
    ),
]

CLAIMS = [*COORDINATORS, *SIMULATED]
