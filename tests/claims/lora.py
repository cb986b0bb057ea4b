"""Numbers of docs/lora.md about adapters beside all weights. Chat runs: one row for each in the raw result."""

from __future__ import annotations

from tests.claims.claim import Claim, of, raw_result

PAGE = "docs/lora.md"
lora = of(PAGE, "lora.json")
PRESETS = {"embedded": "online DPO", "embedded-nash-md": "Nash-MD"}
FIGURES = {"exploitability_tail": "exploitability", "preference": "wins against the start"}


def compared(preset: str, figure: str) -> Claim:
    return lora(
        f"| {PRESETS[preset]} | {FIGURES[figure]} | {{all_weights/0:.3f}} ± {{all_weights/1:.3f}} | "
        "{adapters/0:.3f} ± {adapters/1:.3f} | {difference/0:+.3f} ± {difference/1:.3f} |",
        at=f"compared/preset={preset}&figure={figure}",
    )


def chat(rank: int | None, seed: int) -> Claim:
    """Make the claim of a cell: the wins of one run."""
    before, after = (f"| {seed} | ", " | ") if rank is None else (" | ", " |")
    return lora(
        f"{before}{{value:.3f}} [{{low:.3f}}, {{high:.3f}}]{after}",
        at=f"runs/preset=chat&rank={rank}&seed={seed}/summary/win_rate",
    )


CLAIMS = [
    *(compared(preset, figure) for preset in PRESETS for figure in FIGURES),
    *(chat(run["rank"], run["seed"]) for run in raw_result("lora.json")["runs"] if run["preset"] == "chat"),
]
