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
        for bound, (way, bold) in enumerate((("synchronous", ""), ("asynchronous", "**"), ("asynchronous", "**")))
    ),
    overlap(
        "At a bound of 1 the run is {ratio:.2f} times as fast as the synchronous one",
        at="median",
        ratio=lambda median: median["bound 1, groups_per_second"] / median["bound 0, groups_per_second"],
    ),
    chat("| generation alone; learning alone | {generation:.2f}; {learning:.2f} |", at="median"),
    chat(
        "| bound 0, synchronous | {groups_per_second:.2f} | {of_slower_alone:.2f} | {seconds:.0f} "
        "| {reward/rise:.3f} [{reward/low:.3f}, {reward/high:.3f}] |",
        at="rounds/0/bound 0",
    ),
    chat(
        "| bound 1 | {groups_per_second:.2f} | **{of_slower_alone:.2f}** | {seconds:.0f} "
        "| {reward/rise:.3f} [{reward/low:.3f}, {reward/high:.3f}] |",
        at="rounds/0/bound 1",
    ),
    chat(
        "The asynchronous run is {seconds at bound 0 over bound 1:.2f} times as fast, and the rises",
        at="median",
    ),
]

# ---------------------------------------------------------------- a prompt once, the reference apart

shared = of(PAGE, "shared_prompts.json")
reference = of(PAGE, "reference.json")


AT_LEARNER, RECORDED, ACTOR = "reference at the learner", "log-probs recorded", "reference actor"

UPDATES = [
    shared(
        "completions of {completion} tokens to a prompt of {prompt}, {together:,} tokens at a time",
        at="settings",
        together=lambda settings: int(settings["micro_batch_tokens"]),
    ),
    *(
        shared(f"| {text} | {{seconds/{way}:.1f}} | {{tokens_per_second/{way}:.0f}} | {{memory_mib/{way}:,}} MiB |")
        for text, way in (
            ("learner, prompts shared", "shared"),
            ("learner, one padded row per completion", "one row each"),
            ("transformers, padded, forward and backward of the policy alone", "bare"),
        )
    ),
    shared(
        "sharing makes the learner {shared_over_one_row_each:.2f} times as fast, {shared_over_bare:.1f} times as fast "
        "as bare transformers"
    ),
    reference(
        f"| update, [reference](reference.md) at the learner | {{cpu_seconds/{AT_LEARNER}:.2f}} "
        f"| {{learner_bytes/{AT_LEARNER}:,}} |"
    ),
    reference(f"| update, log-probs recorded | {{cpu_seconds/{RECORDED}:.2f}} | {{learner_bytes/{RECORDED}:,}} |"),
    reference(f"| a reference actor's scoring of the game | {{cpu_seconds/{ACTOR}:.2f}} |"),
    reference("an update takes {update_ratio:.3f} of the time, with the same loss"),
]

# ---------------------------------------------------------------- two models in one engine, TRL, padding

mixture = of(PAGE, "mixture.json")
ENGINE = "{tokens_per_second:,} | {of_plain:.2f} ({of_plain_least:.2f}, {of_plain_most:.2f})"
BOLD_ENGINE = ENGINE.replace("{of_plain:.2f}", "**{of_plain:.2f}**")

MIXTURE = [
    mixture("| plain engine | {tokens_per_second:,} | {of_plain:.0f} |", at="median/256 requests, plain engine"),
    *(
        mixture(f"| {engine} | {figures} |", at=f"median/256 requests, {engine}")
        for engine, figures in (
            ("mixture engine, policy alone", BOLD_ENGINE),
            ("mixture engine, half and half", ENGINE),
            ("mixture engine, mixture alone", BOLD_ENGINE),
        )
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
    ends(
        "have {64/rounds/0/Offbeat/completion_tokens:.0f} tokens in the mean where 64 are allowed, and "
        "{512/rounds/0/Offbeat/completion_tokens:.0f} where 512 are",
        at="new_tokens",
    ),
    full(
        "hidden size 192 ({millions:.1f} million parameters)", millions=lambda raw: raw["settings"]["parameters"] / 1e6
    ),
    full(
        "{64/completions_per_step} completions a step at 64 tokens and {512/completions_per_step} at 512;",
        at="new_tokens",
    ),
    nash_md("mixture {mixture_beta}, tau {tau};", at="settings"),
    full(
        "TRL takes {64/steps_per_round/TRL} timed steps at 64 tokens and {512/steps_per_round/TRL} at 512, Offbeat "
        "{64/steps_per_round/Offbeat} and {512/steps_per_round/Offbeat}.",
        at="new_tokens",
    ),
    of(PAGE, "sft_rows.json")(
        "{packed:.1%} of what is computed is padding if they are packed in rows of the longest, {padded:.0%} "
        "with a row each",
        at="padding",
    ),
    of(PAGE, "engine_start.json")(
        "{least:.1f} to {most:.1f} s with Python's garbage collector at rest",
        at="seconds/at_rest",
        least=min,
        most=max,
    ),
    of(PAGE, "engine_start.json")("{least:.1f} to {most:.1f} s without;", at="seconds/collecting", least=min, most=max),
    of(PAGE, "engine_start.json")("{median_ratio:.2f} in the median of five pairs"),
]

CLAIMS = [*OVERLAP, *UPDATES, *MIXTURE, *TRL]
