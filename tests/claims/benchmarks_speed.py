"""Numbers of docs/benchmarks.md about generation and learning, and about Offbeat beside others."""

from __future__ import annotations

from tests.claims.claim import of

PAGE = "docs/benchmarks.md"

# ---------------------------------------------------------------- overlap of generation and learning

overlap = of(PAGE, "overlap.json")
chat = of(PAGE, "overlap_chat.json")

OVERLAP = [
    *(overlap(f"| {side} alone | {{median/{side}:.1f}} | |") for side in ("generation", "learning")),
    *(
        overlap(
            f"| {way}, bound {bound} | {bold}{{median/bound {bound}, groups_per_second:.1f}}{bold} "
            f"| {bold}{{median/bound {bound}, of_slower_alone:.2f}}{bold} |"
        )
        for bound, (way, bold) in enumerate((("synchronous", ""), ("asynchronous", "**")))
    ),
    overlap(
        "At a bound of 1 the run is {ratio:.2f} times as fast as the synchronous one",
        at="median",
        ratio=lambda median: median["bound 1, groups_per_second"] / median["bound 0, groups_per_second"],
    ),
    chat(
        "it takes {bound 1/seconds:.0f} s instead of {bound 0/seconds:.0f}, and the reward on 40 held-out prompts "
        "rises by {bound 1/reward/rise:.3f} [{bound 1/reward/low:.3f}, {bound 1/reward/high:.3f}] instead of "
        "{bound 0/reward/rise:.3f} [{bound 0/reward/low:.3f}, {bound 0/reward/high:.3f}]",
        at="rounds/0",
    ),
]

# ---------------------------------------------------------------- a prompt once, the reference apart

shared = of(PAGE, "shared_prompts.json")
reference = of(PAGE, "reference.json")

UPDATES = [
    shared(
        "computing a prompt once for its {settings/completions} completions makes the learner "
        "{shared_over_one_row_each:.2f} times as fast, {shared_over_bare:.1f} times as fast as bare transformers"
    ),
    reference("an update takes {update_ratio:.3f} of the time"),
]

# ---------------------------------------------------------------- two models in one engine, TRL, padding

mixture = of(PAGE, "mixture.json")
ENGINE = "median/256 requests, mixture engine"

MIXTURE = [
    mixture(
        f"an engine with two models makes {{{ENGINE}, policy alone/of_plain:.2f}} of a plain engine's tokens per "
        f"second if it samples the policy alone, {{{ENGINE}, half and half/of_plain:.2f}} if half of the requests mix, "
        f"and {{{ENGINE}, mixture alone/of_plain:.2f}} if all do"
    ),
]

full, ends, nash_md = (of(PAGE, f"trl_{name}.json") for name in ("online_dpo", "online_dpo_mean", "nash_md"))
RATES = "{64/median/TRL, cached:.1f}, {64/median/Offbeat:.1f} | {512/median/TRL, cached:.1f}, {512/median/Offbeat:.1f}"


TRL = [
    full(
        f"| online DPO, full length: TRL `cached`, Offbeat (median of 2 rounds) | {RATES} |",
        at="new_tokens",
    ),
    full(
        "| Offbeat / TRL | {64/median/Offbeat / TRL, cached:.2f} | {512/median/Offbeat / TRL, cached:.1f} |",
        at="new_tokens",
    ),
    ends(f"| online DPO, completions that end: TRL `cached`, Offbeat (one round) | {RATES} |", at="new_tokens"),
    ends(
        "| Offbeat / TRL | **{64/median/Offbeat / TRL, cached:.2f}** | **{512/median/Offbeat / TRL, cached:.1f}** |",
        at="new_tokens",
    ),
    nash_md(
        "| Nash-MD, full length: TRL `exact`, Offbeat (one round) "
        "| {64/median/TRL, exact:.1f}, {64/median/Offbeat:.1f} | {512/median/TRL, exact:.2f}, "
        "{512/median/Offbeat:.1f} |",
        at="new_tokens",
    ),
    nash_md(
        "| Offbeat / TRL | **{64/median/Offbeat / TRL, exact:.1f}** | **{512/median/Offbeat / TRL, exact:.0f}** |",
        at="new_tokens",
    ),
    of(PAGE, "sft_rows.json")(
        "{packed:.1%} of what fine-tuning computes is padding if rows are packed up to the longest, {padded:.0%} with "
        "a row each",
        at="padding",
    ),
]

CLAIMS = [*OVERLAP, *UPDATES, *MIXTURE, *TRL]
