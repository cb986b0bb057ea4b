"""Numbers of docs/benchmarks.md about weight syncs, faults, prompts, the driver and long runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import found, of

PAGE = "docs/benchmarks.md"

# ---------------------------------------------------------------- publication

publication = of(PAGE, "publication.json")

PUBLICATION = [
    publication("SmolLM2-135M in bfloat16 ({bytes:MB} MB) goes to another process"),
    publication(
        "From publishing to loaded takes {shm/total:.2f} s by `shm` and {gloo/total:.2f} s by `gloo`. The next update "
        "waits for the publishing alone, {shm/publish:.2f} s and {gloo/publish:.2f} s",
        at="transports",
    ),
]

# ---------------------------------------------------------------- what a weight sync refuses

canary = of(PAGE, "canary.json")


CANARY = [canary("Of {publications} honest publications of the same learner", at="honest")]

# ---------------------------------------------------------------- the GPU's acceptance, on a CPU

acceptance = of(PAGE, "gpu/acceptance-cpu.json")

ACCEPTANCE = [acceptance("took {seconds:.0f} s, and no part failed")]

# ---------------------------------------------------------------- verification and faults

verification = of(PAGE, "verification.json")
chaos = of(PAGE, "chaos.json")
stops = of(PAGE, "stops.json")


def told(choose: Callable[[Any], float]) -> Callable[[Any], float]:
    return lambda raw: choose(each["told_seconds"] for each in raw["trials"])


FAULTS = [
    verification(
        "comparing a checkpoint of {bytes:GB} GB with its [manifest](outputs.md#what-is-stored-is-checked) takes "
        "{seconds/verify:.3f} s, loading it {seconds/load:.2f} s: {verify_over_load:.1%}."
    ),
    chaos("puts {faults} faults into a run", faults=lambda raw: sum(raw["kills"].values())),
    chaos(
        "Over {updates:,} updates every staleness was within the bound of {oldest}, the ledger balanced "
        "({ledger/trained:,} prompts trained)",
        oldest=lambda raw: max(raw["staleness"]),
    ),
    stops("reported every stop after {least:.1f} to {most:.1f} s", least=told(min), most=told(max)),
]

# ---------------------------------------------------------------- prompts, the driver, a long run

prompts = of(PAGE, "prompts.json")
driver = of(PAGE, "driver.json")
soak = of(PAGE, "soak.json")


def start(kind: str, kept: str) -> Callable[[Any], float]:
    """Return the seconds from opening a file to the first prompt, without the cache or from it."""
    return lambda raw: found(raw, f"starts/kind={kind}&start={kept}/seconds")


def flat_out(generators: int, figure: str) -> Callable[[Any], float]:
    """Return a figure of the trial with so many generators and no limit of the rate."""
    return lambda raw: found(raw, f"trials/generators={generators}&rate=None/{figure}")


LONG = [
    prompts(
        "takes {texts:.1f} s for texts and {chats:.1f} s for chats; from the cache {kept_texts:.2f} s and "
        "{kept_chats:.2f} s",
        texts=start("texts", "without the cache"),
        chats=start("chats", "without the cache"),
        kept_texts=start("texts", "from the cache"),
        kept_chats=start("chats", "from the cache"),
    ),
    driver("a group of {completions} completions of {tokens} tokens"),
    driver(
        "costs the driver {few:.3f} ms of processor time with 10 generators and {many:.3f} ms with 1,000; flat out it "
        "handles {rate:tens} groups/s",
        few=flat_out(10, "cpu_ms_per_group"),
        many=flat_out(1000, "cpu_ms_per_group"),
        rate=flat_out(1000, "groups_per_second"),
    ),
    soak(
        "in {updates:,} updates the driver grew by {roles/driver/growth_percent:.1f}%, the generator by "
        "{roles/generator/growth_percent:.1f}%, the learner by {roles/learner/growth_percent:.1f}%"
    ),
]

CLAIMS = [*PUBLICATION, *CANARY, *ACCEPTANCE, *FAULTS, *LONG]
