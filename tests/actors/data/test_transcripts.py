"""Transcripts in the style of HH: what is read can be written again, letter by letter."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.data.preference_layouts import PreferenceRow, parse_preference

NAMES = {"user": "Human", "assistant": "Assistant"}
TEXTS = st.text(alphabet="aé:\n Humnsit.?", min_size=1, max_size=40).map(str.strip)


def written(row: PreferenceRow) -> tuple[str, str]:
    """Both transcripts of a row."""
    assert isinstance(row.prompt, list)
    shared = "".join(f"\n\n{NAMES[message['role']]}: {message['content']}" for message in row.prompt)
    return f"{shared}\n\nAssistant: {row.chosen}", f"{shared}\n\nAssistant: {row.rejected}"


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_transcript_is_rebuilt_exactly_if_its_turns_have_no_space_at_their_ends(
    turns: list[str], chosen: str, rejected: str
) -> None:
    turns = turns if len(turns) % 2 else turns[:-1]  # the user begins and asks last
    texts = [*turns, chosen, rejected]
    assume(turns and all(texts) and chosen != rejected)
    assume(not any(f"\n\n{name}:" in f"\n\n{text}" for text in texts for name in NAMES.values()))
    # A common beginning of both answers belongs to the answers.
    shared = "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {text}" for number, text in enumerate(turns))
    pair = f"{shared}\n\nAssistant: {chosen}", f"{shared}\n\nAssistant: {rejected}"
    assert written(parse_preference(dict(zip(("chosen", "rejected"), pair, strict=True)))) == pair


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (
            "\n\nHuman: Who said 'Human: hi'?\n\nAssistant: A robot.",
            "\n\nHuman: Who said 'Human: hi'?\n\nAssistant: A man.",
        ),
        (
            "\n\nHuman: A list:\n\n1. a\n\n2. b\n\nAssistant: Yes.\n\nHuman: Sure?\n\nAssistant: Quite sure.",
            "\n\nHuman: A list:\n\n1. a\n\n2. b\n\nAssistant: Yes.\n\nHuman: Sure?\n\nAssistant: Quite.",
        ),
    ],
)
def test_names_and_blank_lines_inside_a_turn_stay_where_they_are(chosen: str, rejected: str) -> None:
    assert written(parse_preference({"chosen": chosen, "rejected": rejected})) == (chosen, rejected)
