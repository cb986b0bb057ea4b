"""Every measured number of README and docs against the raw result that it came from.

`tests/claims/` has the claims, the sections that are searched for figures, and the figures that have no raw result.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from tests.claims import (
    anchor,
    benchmarks_games,
    benchmarks_speed,
    benchmarks_system,
    lora,
    pages,
    scale,
    sweeps,
    vstar,
)
from tests.claims.claim import ROOT, Claim, found, of, raw_result, single_spaced
from tests.claims.excused import EXCUSED, Excuse
from tests.claims.figures import SECTIONS, figures

MODULES = (anchor, benchmarks_games, benchmarks_speed, benchmarks_system, lora, pages, scale, sweeps, vstar)
CLAIMS = [claim for module in MODULES for claim in module.CLAIMS]


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def wrong(claim: Claim, page: str, raw: Any = None) -> list[str]:
    """Tell how often a page has the text of a claim, unless it is once."""
    text, _ = claim.filled(raw)
    times = single_spaced(page).count(text)
    return [] if times == 1 else [f"{claim.page} has {times} times instead of once, by {claim.raw}: {text}"]


def unlinked(name: str, page: str, claims: list[Claim], excuses: list[Excuse]) -> list[str]:
    """List the figures of a page that neither a claim nor an excuse covers, each with what stands around it."""
    spaced = single_spaced(page)
    fields, texts = [place for excuse in excuses for place in excuse.places()], []
    for claim in claims:
        text, numbers = claim.filled()
        if (start := spaced.find(text)) >= 0:
            fields += [(start + begin, start + end) for begin, end in numbers]
            texts.append((start, start + len(text)))
    return [
        f"{name}: ...{spaced[max(0, figure.begin - 60) : figure.end + 30]}..."
        for figure in figures(page, SECTIONS[name])
        if not figure.within(fields) and (figure.strict or not figure.within(texts))
    ]


# ---------------------------------------------------------------- the pages


def test_every_claim_stands_in_its_page_with_the_numbers_of_its_raw_result() -> None:
    faults = [fault for claim in CLAIMS for fault in wrong(claim, read(claim.page))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", SECTIONS)
def test_every_figure_is_linked_to_a_raw_result_or_excused(page: str) -> None:
    claims = [claim for claim in CLAIMS if claim.page == page]
    excuses = [excuse for excuse in EXCUSED if excuse.page == page]
    left = unlinked(page, read(page), claims, excuses)
    assert not left, "\n".join(left)


def test_every_excuse_has_its_reason_and_stands_in_its_page_once() -> None:
    assert [excuse for excuse in EXCUSED if not excuse.reason or len(excuse.places()) != 1] == []


def test_every_page_that_tells_of_a_raw_result_is_searched() -> None:
    """docs/faults.md names a test or a raw result in its rows, for `test_docs.py`; docs/evidence.md only links."""
    pages = {page.relative_to(ROOT).as_posix(): page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    telling = {
        name for name, page in pages.items() if re.search(r"benchmarks/results/|^#+ Measured$", page.read_text())
    }
    assert telling <= {*SECTIONS, "docs/faults.md", "docs/evidence.md"}


def test_every_section_that_is_searched_is_there() -> None:
    gone = {page: [each for each in headings if f"# {each}\n" not in read(page)] for page, headings in SECTIONS.items()}
    assert {page: headings for page, headings in gone.items() if headings} == {}


# ---------------------------------------------------------------- what would be found

CHOSEN_BY = {
    "anchor_map.json": {"weight", "horizon"},
    "driver.json": {"generators", "rate"},
    "nash.json": {"updates", "seed"},
    "preference.json": {"seed"},
    "shards.json": {"shards", "tokens"},
    "vstar.json": {"k"},
    "vstar_rounds.json": {"k"},
    "anchor.json": {"updates", "seed"},
    "anchor_nash.json": {"updates", "seed"},
    "lora.json": {"rank", "seed"},
    "chat_staleness.json": {"seed"},
}
"""Numbers by which claims choose a run from a raw result."""


def measured_anew(raw: Any, kept: set[str], chance: random.Random) -> Any:
    """Change every number of a raw result, each in its own way, but those under a key of `kept`."""
    if isinstance(raw, dict):
        return {key: each if key in kept else measured_anew(each, kept, chance) for key, each in raw.items()}
    if isinstance(raw, list):
        return [measured_anew(each, kept, chance) for each in raw]
    if isinstance(raw, str) and raw.isdecimal():
        return str(int(raw) + 1)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return raw
    return 2 * raw + chance.randint(1, 9) if isinstance(raw, int) else raw * chance.uniform(1.5, 3.0)


def with_another_digit(text: str, place: tuple[int, int]) -> str:
    """Change the last digit in a part of a text."""
    last = max(at for at in range(*place) if text[at].isdigit())
    return f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}"


def test_a_digit_that_is_changed_in_a_page_is_found() -> None:
    missed = []
    for claim in CLAIMS:
        text, numbers = claim.filled()
        pages = {single_spaced(read(claim.page)).replace(text, with_another_digit(text, each)) for each in numbers}
        missed += [text for page in pages if not wrong(claim, page)]
    assert missed == []


def test_a_raw_result_that_is_measured_again_is_found() -> None:
    anew = {
        claim.raw: measured_anew(raw_result(claim.raw), CHOSEN_BY.get(claim.raw, set()), random.Random(0))
        for claim in CLAIMS
    }
    assert [claim for claim in CLAIMS if not wrong(claim, read(claim.page), anew[claim.raw])] == []


def test_the_message_names_page_raw_result_and_the_text_that_is_expected() -> None:
    claim = of("docs/some.md", "mixture.json")("took {seconds:.1f} s\nat most")
    assert wrong(claim, "It took 2.5 s at\nmost.", {"seconds": 2.5}) == []
    assert wrong(claim, "It took 2.5 s at most.", {"seconds": 3}) == [
        "docs/some.md has 0 times instead of once, by mixture.json: took 3.0 s at most"
    ]


def test_a_path_takes_the_entry_of_a_list_that_has_the_given_values() -> None:
    raw = {"runs": [{"seed": 0, "lag": 16, "kl / nats": 1.5}, {"seed": 1, "lag": 16, "kl / nats": [2.5]}]}
    assert found(raw, "runs/seed=1&lag=16/kl / nats/0") == 2.5
    with pytest.raises(ValueError, match="too many values"):
        found(raw, "runs/lag=16")


PAGE = """# 3.5 of it

| lag | 2.5 s |
|---|---|
| 16 | `0.1` done |

Then 7 updates took 0.5 s, 25% of 1,000 [more](a.md#4.5), on 2 cores with torch 2.13.0 and SmolLM2-135M at 3e-4.

    python -m benchmarks.some --seconds 0.5

## Another

It took 40 minutes.
"""


def test_figures_are_numbers_in_rows_and_those_with_a_point_a_comma_a_percent_sign_or_a_unit() -> None:
    spaced = single_spaced(PAGE)
    assert [spaced[each.begin : each.end] for each in figures(PAGE, ())] == [
        "16", "0.5", "25", "1,000", "3e-4", "40",
    ]  # fmt: skip
    assert [spaced[each.begin : each.end] for each in figures(PAGE, ("Another",))] == ["40"]


def test_a_figure_that_no_raw_result_fills_in_is_found() -> None:
    name = "docs/benchmarks.md"
    in_field, in_text = (
        of(name, "sft_rows.json")(text) for text in ("{padding/padded:.0%} or 5 s", "{padding/padded:.0%}")
    )
    page = "\nIt is 39% or 5 s.\n"
    assert unlinked(name, page, [in_field], []) == ["docs/benchmarks.md: ... It is 39% or 5 s. ..."]
    assert len(unlinked(name, page, [], [])) == 2
    assert unlinked(name, page, [in_text], []) == unlinked(name, page, [in_field], [])
    assert unlinked(name, "\n| 16 | 39% |\n", [of(name, "sft_rows.json")("| 16 | {padding/padded:.0%} |")], []) == []
