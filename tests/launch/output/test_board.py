"""The board: everything a reader watches is on it, at every width; a plain log gets few lines and no terminal codes."""

import contextlib
import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from actors.records import GeneratorStatus
from launch.output.board import Board, JsonBoard, RunSnapshot, clock, line, line_due, render

GENERATORS = (
    GeneratorStatus(
        "generator-0", 12, 32, 4, 120034, generating_seconds=83.0, updating_seconds=2.0, idle_seconds=15.0, process="a"
    ),
    GeneratorStatus(
        "generator-1", 11, 30, 0, 98000, generating_seconds=50.0, updating_seconds=25.0, idle_seconds=25.0, process="b"
    ),
)
SNAPSHOT = RunSnapshot(
    elapsed_seconds=3723.0,
    version=12,
    updates=12,
    total_updates=48,
    tokens_per_second=1234.5,
    groups_per_second=12.34,
    generators=GENERATORS,
    ages=(0, 0, 0, 1),
    max_staleness=2,
    buffered=4,
    in_flight=36,
    learner_state="training",
    learner_seconds={"training": 30.0, "waiting": 10.0},
    scores={"loss": "0.6123", "reward": "0.250", "KL": "3.10", "win rate": "0.710 [0.650, 0.770]"},
    dropped={"stale": 3, "judge_timeout": 0},
)


def rows(snapshot, width=100):
    console = Console(record=True, width=width, file=StringIO())
    console.print(render(snapshot))
    return console.export_text().splitlines()


def row(snapshot, word, width=100):
    (found,) = [text for text in rows(snapshot, width) if f" {word} " in text]
    return found


def test_each_generator_shows_its_version_and_how_far_it_is_behind():
    assert "12" in row(SNAPSHOT, "generator-0")
    assert "(-" not in row(SNAPSHOT, "generator-0")
    assert "11 (-1)" in row(SNAPSHOT, "generator-1")


def test_a_generator_s_time_is_shown_as_shares_of_its_own_total():
    words = row(SNAPSHOT, "generator-1").split()
    assert words[-4:-1] == ["50%", "25%", "25%"]


def test_buffer_ages_are_counted_up_to_the_bound_and_the_bound_is_named():
    left_half = [text[2:48].split() for text in rows(SNAPSHOT) if "age " in text]
    assert [(words[1], words[-1]) for words in left_half] == [("0", "3"), ("1", "1"), ("2", "0")]
    assert "= bound" in row(SNAPSHOT, "age 2")


def test_an_age_over_the_bound_is_called_out():
    assert any("age 3 > bound" in text for text in rows(replace(SNAPSHOT, ages=(0, 3))))


def test_the_most_common_age_has_the_longest_bar():
    bars = {age: row(SNAPSHOT, f"age {age}")[:50].count("━") for age in (0, 1)}
    assert bars[0] == pytest.approx(3 * bars[1], abs=2)
    assert bars[1] > 0


def test_a_wide_staleness_bound_does_not_fill_the_screen():
    tall = rows(replace(SNAPSHOT, max_staleness=64, ages=(0, 17)))
    assert len(tall) < 24
    assert any("age 17" in text for text in tall)
    assert any("age 64 = bound" in text for text in tall)


def test_many_generators_are_cut_with_a_count():
    many = tuple(replace(GENERATORS[0], name=f"generator-{i}") for i in range(20))
    shown = rows(replace(SNAPSHOT, generators=many))
    assert sum("generator-" in text for text in shown) == 8
    assert any("and 12 more" in text for text in shown)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_number_is_whole_at_every_width(width):
    text = "\n".join(rows(SNAPSHOT, width))
    for piece in (
        "12/48",
        "25%",
        "1,234 tokens/s",
        "12.3 groups/s",
        "0.6123",
        "3.10",
        "0.250",
        "1:02:03",
        "dropped 3 stale",
    ):
        assert piece in text
    assert "win rate 0.710 [0.650, 0.770]" in text
    assert "…" not in text
    assert all(len(shown) == width for shown in text.splitlines())


def test_what_is_not_known_yet_is_a_dash():
    start = replace(SNAPSHOT, scores=dict.fromkeys(SNAPSHOT.scores), updates=0, dropped={})
    text = "\n".join(rows(start))
    assert "win rate -" in text
    assert "KL -" in text
    assert "dropped" not in text
    assert "loss" not in line(start)


def test_the_plain_line_holds_the_same_facts():
    assert line(SNAPSHOT) == (
        "update 12/48 (25%) version 12 | loss 0.6123 | reward 0.250 | KL 3.10 | "
        "win rate 0.710 [0.650, 0.770] | 1,234 tokens/s 12.3 groups/s | buffered 4 in flight 36 oldest 1 of 2 | "
        "learner training | dropped 3 stale | elapsed 1:02:03"
    )


def test_figures_outside_the_band_are_named() -> None:
    diverging = replace(SNAPSHOT, outside=("kl_players 812",))
    assert "outside the band: kl_players 812" in "\n".join(rows(diverging))
    assert "outside the band: kl_players 812" in line(diverging)
    assert "outside the band" not in line(SNAPSHOT)


def test_a_clock_does_not_wrap_hours_into_days():
    assert [clock(seconds) for seconds in (0.9, 59, 3600, 90061)] == ["0:00:00", "0:00:59", "1:00:00", "25:01:01"]


def at(updates, seconds):
    return replace(SNAPSHOT, updates=updates, elapsed_seconds=seconds, total_updates=100)


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (None, at(0, 0.0), True),
        (at(0, 0.0), at(10, 4.9), False),  # a tenth, but too soon
        (at(0, 0.0), at(10, 5.0), True),
        (at(0, 0.0), at(9, 29.0), False),  # long, but less than a tenth
        (at(0, 0.0), at(0, 30.0), True),  # half a minute without a word
        (at(99, 10.0), at(100, 10.1), True),  # the end
        (at(100, 10.0), at(100, 39.0), False),  # the end, once
        (at(100, 10.0), at(100, 40.0), True),  # the last evaluation, which may take as long as it likes
    ],
)
def test_a_plain_log_gets_a_line_when_there_is_news(last, now, due):
    assert line_due(last, now) is due


def test_a_run_of_an_hour_logs_tens_of_lines_and_not_thousands():
    """3600 snapshots, one a second and one update each: half a minute of silence is the rule that applies."""
    out = StringIO()
    with Board(Console(file=out, width=100)) as board:
        for second in range(3601):
            board.update(replace(SNAPSHOT, updates=second, total_updates=3600, elapsed_seconds=float(second)))
    assert len(out.getvalue().splitlines()) == 121
    assert "update 3600/3600 (100%)" in out.getvalue().splitlines()[-1]


def test_no_terminal_codes_reach_a_plain_log_and_lines_are_not_wrapped():
    out = StringIO()
    with Board(Console(file=out, width=40)) as board:
        board.message("starting [2] generators: " + "x" * 100)
        board.update(SNAPSHOT)
    lines = out.getvalue().splitlines()
    assert lines[0] == "offbeat: starting [2] generators: " + "x" * 100
    assert lines[1] == f"offbeat: {line(SNAPSHOT)}"
    assert "\x1b" not in out.getvalue()


def test_in_a_terminal_the_board_is_drawn_in_place_and_messages_stay_above_it():
    out = StringIO()
    with Board(Console(file=out, width=100, force_terminal=True)) as board:
        board.update(SNAPSHOT)
        board.message("checkpoint written")
        board.update(replace(SNAPSHOT, version=13))
    assert "offbeat: checkpoint written" in out.getvalue()
    assert "version 13" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue(), "the cursor was not given back"


def test_the_cursor_comes_back_when_the_run_fails():
    out = StringIO()
    with contextlib.suppress(RuntimeError), Board(Console(file=out, width=100, force_terminal=True)) as board:
        board.update(SNAPSHOT)
        raise RuntimeError
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_the_time_left_is_shown_once_it_is_known():
    assert "left" not in line(SNAPSHOT)
    known = replace(SNAPSHOT, seconds_left=3600.0)
    assert line(known).endswith("elapsed 1:02:03 | left 1:00:00")
    assert "1:02:03 elapsed, 1:00:00 left" in rows(known)[-1]


def test_a_log_of_json_has_one_object_for_a_message_and_for_a_snapshot_that_is_due():
    out = StringIO()
    with JsonBoard(lambda: ("chat", "0a1b"), out) as board:
        board.message("warning: two\nlines \x1b[2J")
        board.update(SNAPSHOT)
        board.update(SNAPSHOT)
        board.console.print("a table\nof two rows")
    rows = [json.loads(text) for text in out.getvalue().splitlines()]
    assert [row.pop("time")[-6:] for row in rows] == ["+00:00"] * 4
    common = {"run": "chat", "run_id": "0a1b", "role": "driver"}
    assert rows == [
        {"level": "warning", **common, "version": None, "message": "two\nlines \\x1b[2J"},
        {"level": "info", **common, "version": 12, "message": line(SNAPSHOT)},
        {"level": "info", **common, "version": 12, "message": "a table"},
        {"level": "info", **common, "version": 12, "message": "of two rows"},
    ]
