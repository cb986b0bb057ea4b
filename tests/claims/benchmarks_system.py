"""Numbers of docs/benchmarks.md about weight syncs, faults, prompts, the driver and long runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.claims.claim import Claim, found, of

PAGE = "docs/benchmarks.md"

# ---------------------------------------------------------------- publication

publication = of(PAGE, "publication.json")

PUBLICATION = [
    publication("SmolLM2-135M in bfloat16 ({bytes:MB} MB), and another"),
    *(
        publication(f"| {text} | {{shm/{key}:.2f}} | {{gloo/{key}:.2f}} |", at="transports")
        for text, key in (
            ("publish", "publish"),
            ("transfer, and checks of every bit", "transfer"),
            ("load", "load"),
            ("publish to loaded", "total"),
        )
    ),
    publication(
        "| total over a copy in each process | **{shm/copies:.2f}** | **{gloo/copies:.2f}** |", at="transports"
    ),
    publication(
        "of {tokens:,} tokens of such a model takes {step:.1f} s alone and **{delay:.1%}** longer with a "
        "publication by `gloo` beside it",
        at="transports/gloo",
    ),
]

# ---------------------------------------------------------------- what a weight sync refuses

canary = of(PAGE, "canary.json")


def mean_difference(fault: dict[str, Any]) -> float:
    """Return the mean difference of log-probs that a refusal names, in nats."""
    return float(re.findall(r"by ([\d.]+) in the mean", fault["reason"])[0])


def allowed(fault: dict[str, Any]) -> float:
    return float(re.findall(r"tokens, ([\d.]+) are allowed", fault["reason"])[0])


CANARY = [
    *(
        canary(f"| {text} | {{publications}} {rest}", at=f"faults/{fault}")
        for text, fault, rest in (
            ("the engine loads nothing", "nothing is loaded", "| the layer was not loaded |"),
            (
                "the packed output projection keeps the old embedding",
                "tied output projection stays",
                "| the layer does not compute",
            ),
            ("one layer left out", "one layer left out", "| the layer was not loaded |"),
            ("the version before loaded again", "version before loaded again", "(the first has none before) |"),
            ("final norm multiplied by 1.02", "final norm times 1.02", "| it is not the published one |"),
            (
                "the learner publishes the tensors of the version before",
                "tensors of the version before published",
                "| they are the same to the bit",
            ),
        )
    ),
    canary(
        "| two layers exchanged | {publications} | mean difference of log-probs {mean:.2f} nats, {allowed} "
        "are allowed |",
        at="faults/two layers swapped",
        mean=mean_difference,
        allowed=allowed,
    ),
    canary(
        "| one layer's keys set to zero | {publications} | mean difference of log-probs {mean:.2f} nats |",
        at="faults/keys of one layer zero",
        mean=mean_difference,
    ),
    canary("Of {publications} honest publications of the same learner", at="honest"),
]

# ---------------------------------------------------------------- the GPU's acceptance, on a CPU

acceptance = of(PAGE, "gpu/acceptance-cpu.json")
FLOAT32, BFLOAT16 = (f"parts/part=mixture&dtype={dtype}/figures" for dtype in ("float32", "bfloat16"))

ACCEPTANCE = [
    acceptance("SmolLM2-135M-Instruct in bfloat16 ({parts/part=shm/figures/bytes:MB} MB), {seconds:.0f} s in all"),
    acceptance(
        "| sender held by a receiver that was killed; the others had the version after | {sender_held:.2f} s; "
        "{others_finished:.2f} s |",
        at="parts/part=kill/figures",
    ),
    acceptance(
        f"| engine and learner apart, largest and mean of the worst beta | float32 {{{FLOAT32}/largest:.5f}} and "
        f"{{{FLOAT32}/mean:.6f}} nats, bfloat16 {{{BFLOAT16}/largest:.2f}} and {{{BFLOAT16}/mean:.2f}} |"
    ),
    acceptance("| honest publications refused | {refusals} of {publications} |", at="parts/part=canary/figures"),
    acceptance(
        "| doctor's sum over the peak of an update | {estimate_over_peak:.2f} |", at="parts/part=learner/figures"
    ),
]

# ---------------------------------------------------------------- verification and faults

verification = of(PAGE, "verification.json")
chaos = of(PAGE, "chaos.json")
stops = of(PAGE, "stops.json")
recovery = of(PAGE, "recovery.json")


def told(choose: Callable[[Any], float]) -> Callable[[Any], float]:
    return lambda raw: choose(each["told_seconds"] for each in raw["trials"])


def start_up(choose: Callable[[Any], float]) -> Callable[[Any], float]:
    return lambda raw: choose(each["start_up_seconds"] for each in raw["runs"])


def over_rounds(choose: Callable[[Any], float], figure: str) -> Callable[[Any], float]:
    return lambda raw: choose(each[figure] for run in raw["runs"] for each in run["rounds"])


FAULTS = [
    verification(
        "stage 1 in bfloat16, {bytes:GB} GB: comparing every file with its "
        "[manifest](outputs.md#what-is-stored-is-checked) "
        "takes {seconds/verify:.3f} s ({verify_gb_per_second:.1f} GB/s), loading it {seconds/load:.2f} s: "
        "{verify_over_load:.1%}, against"
    ),
    verification(
        "loading takes {load:.2f} s, and verifying and then loading {verify_and_load:.2f} s: "
        "{added_over_load:.1%} more",
        at="from_disk",
    ),
    chaos(
        "has {faults} faults, drawn at random",
        faults=lambda raw: sum(raw["kills"].values()),
    ),
    chaos(
        "Seed {seed}, {updates:,} updates: {driver_starts} starts of the driver, {wall_seconds:.0f} s. All "
        "updates were "
        "made, every staleness was within the bound of {oldest}, the ledger balanced ({ledger/trained:,} "
        "prompts trained; "
        "{ledger/returned/generator died} leases returned by dead generators and {ledger/returned/restart} by resumes,",
        oldest=lambda raw: max(raw["staleness"]),
    ),
    stops("The watchdog reported every stop after {least:.1f} to {most:.1f} s", least=told(min), most=told(max)),
    recovery(
        "took {least:.1f} to {most:.1f} s (median {median_start_up_seconds:.1f}); six recoveries",
        least=start_up(min),
        most=start_up(max),
    ),
    recovery(
        "{least:.1f} to {most:.1f} s (median {median_recovery_seconds:.1f}): {quickest:.2f} to {slowest:.2f} "
        "of their run's "
        "start-up, {median_recovery:.2f} in the median",
        least=over_rounds(min, "recovery_seconds"),
        most=over_rounds(max, "recovery_seconds"),
        quickest=over_rounds(min, "recovery"),
        slowest=over_rounds(max, "recovery"),
    ),
    recovery(
        "The learner keeps {least:.2f} to {most:.2f} times its share (median {median_share:.2f})",
        least=over_rounds(min, "share"),
        most=over_rounds(max, "share"),
    ),
]

# ---------------------------------------------------------------- prompts, the driver, a long run

prompts = of(PAGE, "prompts.json")
driver = of(PAGE, "driver.json")
soak = of(PAGE, "soak.json")

START = "| {peak_mb:,} |"


def microseconds(choose: Callable[[Any], float]) -> Callable[[Any], float]:
    """Compute the least or the most microseconds for a prompt."""
    return lambda raw: choose(each["microseconds_per_prompt"] for each in raw["starts"] if each["start"] != "before")


def trials(generators: int, text: str) -> Claim:
    """Make a claim about the two trials with so many generators."""

    def figure(rate: float | None, name: str) -> Callable[[Any], float]:
        return lambda raw: found(raw, f"trials/generators={generators}&rate={rate}")[name]

    return driver(
        text,
        flat_out=figure(None, "groups_per_second"),
        ms=figure(None, "cpu_ms_per_group"),
        offered=figure(2000.0, "groups_per_second"),
    )


LONG = [
    *(
        prompts(
            f"| {kind} | without the cache | **{{seconds:.1f}}** {START} {{processes_peak_mb}} |",
            at=f"starts/kind={kind}&start=without the cache",
        )
        for kind in ("texts", "chats")
    ),
    *(
        prompts(
            f"| {kind} | from the cache | **{{seconds:.2f}}** {START}", at=f"starts/kind={kind}&start=from the cache"
        )
        for kind in ("texts", "chats")
    ),
    prompts(
        "A prompt takes {least:.1f} to {most:.1f} microseconds when it is asked for",
        least=microseconds(min),
        most=microseconds(max),
    ),
    driver("each group, of {completions} completions of {tokens} tokens"),
    *(
        trials(count, f"| {count:,} | {{flat_out:tens}} | {{ms:.3f}} | {{offered:,.0f}} |")
        for count in (10, 100, 1000, 2000)
    ),
    driver(
        "A checkpoint of {groups:,.0f} buffered groups took {seconds:.2f} s, in which the event loop never "
        "stood still for "
        "longer than {stopped_seconds:.2f} s",
        at="checkpoint",
    ),
    soak("two cores make about {updates_per_second:.0f} updates a second"),
    soak(
        "One run of {updates:,} updates in {minutes:.0f} minutes: the driver grew by "
        "{roles/driver/growth_percent:.1f}%, the "
        "generator by {roles/generator/growth_percent:.1f}%, the learner by {roles/learner/growth_percent:.1f}%,",
        minutes=lambda raw: raw["wall_seconds"] / 60,
    ),
    soak("held the same {mib:.0f} MiB at both ends", mib=lambda raw: raw["shared_memory"]["bytes"][1] / 2**20),
]

CLAIMS = [*PUBLICATION, *CANARY, *ACCEPTANCE, *FAULTS, *LONG]
