"""Numbers of the pages that have few, and of README."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.claims.claim import of

# ---------------------------------------------------------------- README

overlap = of("README.md", "overlap.json")

demo = of("README.md", "demo.json")
ROUTE = "{{routes/{0}/exploitability:.3f}} {{routes/{0}/exact_kl:.2f}} {{routes/{0}/preference:.3f}} "
ROUTE += "{{routes/{0}/target_exploitability:.3f}} at KL {{routes/{0}/target_kl:.2f}}"


def best_answer_wins(route: str) -> Callable[[Any], float]:
    return lambda raw: 0.5 + raw["routes"][route]["exploitability"]


README = [
    demo(
        "start (SFT) {start_exploitability:.3f} 0.00 0.500 "
        f"bradley-terry {ROUTE.format('bradley-terry')} nash-md {ROUTE.format('nash-md')} "
        "nash-md is preferred to bradley-terry with probability {preferred:.3f}"
    ),
    demo(
        "the best answer to bradley-terry wins {rival:.0%} of the time, the best answer to nash-md {nash:.0%}",
        rival=best_answer_wins("bradley-terry"),
        nash=best_answer_wins("nash-md"),
    ),
    overlap(
        "reaches {bound 1, of_slower_alone:.2f} of the speed of the slower side alone; synchronous training reaches "
        "{bound 0, of_slower_alone:.2f}",
        at="median",
    ),
]

# ---------------------------------------------------------------- docs/evaluate.md

choice = of("docs/evaluate.md", "vstar.json")


def share(path: str) -> str:
    """Make the field of a share with its interval."""
    return f"{{choice/{path}/value:.3f}} [{{choice/{path}/low:.3f}}, {{choice/{path}/high:.3f}}]"


EVALUATE = [
    choice(
        "Of {choice/candidates} answers to each of {task/test} held-out problems a vote is right in "
        f"{share('majority')}, the verifier's likelihood in "
        f"{share('rows/k=16/verifiers/0')}, and its reward in {share('by_reward/k=16')}."
    )
]

# ---------------------------------------------------------------- docs/generators.md, docs/data.md

generator = of("docs/generators.md", "generator.json")
on_update = of("docs/generators.md", "on_update.json")
fp8 = of("docs/generators.md", "fp8.json")

BESIDE_BARE = "{generator_over/bare engine:.3f} | {least/bare engine:.3f}, {most/bare engine:.3f} |"


def by_the_clock(choose: Callable[[Any], float], extreme: str) -> Callable[[Any], float]:
    return lambda raw: choose(raw[model]["clock"][extreme]["bare engine"] for model in ("toy", "model"))


GENERATORS = [
    generator(f"| toy: Llama of 2 layers | {BESIDE_BARE}", at="toy/processor"),
    generator(f"| SmolLM2-135M, bfloat16 | {BESIDE_BARE}", at="model/processor"),
    generator(
        "by the clock the same rounds spread from {least:.1f} to {most:.1f}.",
        least=by_the_clock(min, "least"),
        most=by_the_clock(max, "most"),
    ),
    on_update(
        "a sync costs {seconds_of_a_sync/recompute:.2f} s of processor time with `recompute`, "
        "{seconds_of_a_sync/keep:.2f} s with `keep`"
    ),
    fp8("changes log-probs by {mean:.3f} nats in the mean", at="nats/fp8 from bfloat16, one scale per channel"),
]

DATA = [
    of("docs/data.md", "conversion.json")(
        "({source_mib:.0f} MiB) took {seconds:.0f} seconds on two cores, {rows_per_second:,.0f} rows a second, and "
        "{peak_mib:.0f} MiB at most"
    ),
]

# ---------------------------------------------------------------- docs/preference.md

preference = of("docs/preference.md", "preference.json")


def cycle_error(run: Any) -> float:
    """Compute the largest error of the three probabilities of the cycle."""
    return max(abs(model - gold) for model, gold in zip(run["cycle"]["model"], run["cycle"]["gold"], strict=True))


PREFERENCE = [
    *(
        preference(
            f"| {kind} | 0 | {{card/nll:.4f}} | {{card/label_entropy:.4f}} | {{card/accuracy:.4f}} | "
            "{card/ece:.4f} | {cycle:.3f} |",
            at=f"runs/kind={kind}&seed=0",
            cycle=cycle_error,
        )
        for kind in ("pairwise", "skew", "bradley_terry")
    ),
]

# ---------------------------------------------------------------- pages with one or two

OTHERS = [
    of("docs/reference.md", "reference.json")("on CPU, an update takes {update_ratio:.3f} of the time"),
    of("docs/environments.md", "calculator.json")(
        "reward {start:.3f} at the start, {value:.3f} at the end, a rise of {rise:.3f} [{low:.3f}, {high:.3f}]",
        at="summary/reward",
    ),
    of("docs/judges.md", "answers.json")(
        "All {golds_right:,} gold answers of GSM8K are right by it, and none of {altered:,} altered ones"
    ),
    of("docs/lora.md", "publication.json")(
        "A weight sync of SmolLM2-135M in bfloat16 is {mb:.1f} MB with all weights", mb=lambda raw: raw["bytes"] / 1e6
    ),
]

CLAIMS = [*README, *EVALUATE, *GENERATORS, *DATA, *PREFERENCE, *OTHERS]
