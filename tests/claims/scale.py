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


SIMULATED = [
    shards(
        "8 coordinators let generators idle for {3/idle_share:.1%}, 16 for {4/idle_share:.1%}.",
        at="clusters",
    )
]

CLAIMS = [*COORDINATORS, *SIMULATED]
