"""What is read of a run: all of a whole one, the rest of a half one, and nothing of what is no run."""

from __future__ import annotations

import fcntl
import os

import pytest

from actors.errors import UsageError
from actors.records import Group, Judgement, Lease, Prompt
from launch.output.samples import write_before_and_after
from launch.report.records import read_run
from launch.report.samples import read_samples, staleness_of
from launch.report.timeline import lanes_of
from tests.launch.report.runs import (
    completion_of,
    summary_of,
    write_config,
    write_journal,
    write_lines,
    write_rows,
    write_run,
)


def test_a_whole_run_lacks_nothing(tmp_path):
    run = read_run(write_run(tmp_path / "small"))
    assert (run.name, run.status, run.updates, run.planned, run.bound) == ("small", "completed", 4, 4, 2)
    assert dict(run.column("loss")) == pytest.approx({1.0: 0.7, 2.0: 0.6, 3.0: 0.5, 4.0: 0.4})
    assert run.missing == []


def test_a_directory_that_is_none_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no directory .*nowhere; give the directory of a run"):
        read_run(tmp_path / "nowhere")


def test_what_is_no_run_says_what_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match=r"it has none of config.yaml, metrics.jsonl, summary.json and run_id"):
        read_run(tmp_path)


def test_a_directory_of_runs_names_them_even_with_a_summary_of_its_own(tmp_path):
    """As `offbeat demo` leaves it."""
    for name in ("nash-md", "bradley-terry"):
        write_config(tmp_path / name)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds runs; compare these: offbeat report \S+bradley-terry \S+nash-md$"):
        read_run(tmp_path)


def test_a_run_that_goes_on_is_running_and_its_summary_is_of_an_earlier_part(tmp_path):
    write_run(tmp_path, status="interrupted")
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        run = read_run(tmp_path)
    finally:
        os.close(descriptor)
    assert run.status == "running"
    assert run.missing == ["summary.json is of the part before the last resume; its figures are of that part."]
    assert read_run(tmp_path).status == "interrupted"


def test_a_run_killed_before_its_summary_is_unfinished(tmp_path):
    write_config(tmp_path)
    write_rows(tmp_path, [{"loss": 1.0}])
    run = read_run(tmp_path)
    assert (run.status, run.updates, run.planned) == ("unfinished", 1, 4)
    assert run.missing == ["There is no summary.json: the run did not end in order, or has not begun."]


def test_a_line_that_was_cut_off_is_counted_and_the_rest_is_read(tmp_path):
    write_lines(tmp_path, [{"step": 1, "loss": 0.5}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run = read_run(tmp_path)
    assert run.column("loss") == [(1.0, 0.5)]
    assert "metrics.jsonl has 1 line that cannot be read and is left out." in run.missing


@pytest.mark.parametrize("value", ["1e400", "-1e308", "1" + "0" * 400, "NaN", "true", '"x"', "{}", "null"])
def test_what_is_no_figure_of_a_run_is_left_out_of_its_curves(tmp_path, value):
    """A loss of 1e308 beside one of -1e308 ended the report with an OverflowError."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.0}}\n{{"step": 2, "loss": {value}}}\n')
    assert read_run(tmp_path).column("loss") == [(1.0, 2.0)]


def test_a_damaged_configuration_and_summary_are_told(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "summary.json").write_text("{")
    run = read_run(tmp_path)
    assert [text.partition(":")[0] for text in run.missing] == [
        "config.yaml cannot be read",
        "There is no metrics.jsonl, so there are no curves.",
        "summary.json cannot be read",
    ]


@pytest.mark.parametrize("content", ["", "- a\n", "5\n"])
def test_a_configuration_without_settings_is_told(content, tmp_path):
    write_run(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert read_run(tmp_path).missing == ["config.yaml holds no settings."]


def test_null_and_text_are_no_values_of_a_curve(tmp_path):
    write_lines(tmp_path, [{"step": 1, "loss": None}, {"step": 2, "loss": "x"}, {"step": 3, "loss": 2.0}])
    assert read_run(tmp_path).column("loss") == [(3.0, 2.0)]


# ---------------------------------------------------------------- samples and staleness


def test_samples_are_the_first_completion_of_the_same_prompt_early_and_late(tmp_path):
    config = write_config(tmp_path)
    write_journal(tmp_path, config, [["early"], ["between"], ["late"]], prompt="a question")
    ((before, after),) = read_samples(read_run(tmp_path)).pairs
    assert (before.text, before.when, before.score, before.others) == (
        "early",
        "update 1, sampled by version 0",
        0.25,
        0.5,
    )
    assert (after.text, after.when, after.prompt) == ("late", "update 3, sampled by version 2", "a question")


def test_prompts_that_occur_once_are_shown_by_themselves(tmp_path):
    config = write_config(tmp_path)
    write_journal(tmp_path, config, [["one"], []])
    found = read_samples(read_run(tmp_path))
    assert [(before.text, after) for before, after in found.pairs] == [("one", None)]
    assert "one update" in found.note


def test_answers_of_the_final_evaluation_come_before_those_of_the_journal(tmp_path):
    write_run(tmp_path)
    completions = (completion_of("trained", 4), completion_of("untrained", 0))
    lease = Lease(0, 0, Prompt("e:0", (1,), "why?"), 0, 0.0)
    write_before_and_after(tmp_path, [Group(lease, completions, Judgement((0.75, 0.25)))], None)
    ((before, after),) = read_samples(read_run(tmp_path)).pairs
    assert before is not None
    assert after is not None
    assert (before.prompt, before.text, before.score) == ("why?", "untrained", 0.25)
    assert (after.text, after.score) == ("trained", 0.75)
    (tmp_path / "evaluation" / "answers.jsonl").write_text("{")
    assert "journal" in read_samples(read_run(tmp_path)).note


def test_without_a_journal_there_are_no_samples_and_it_says_so(tmp_path):
    write_config(tmp_path)
    found = read_samples(read_run(tmp_path))
    assert (found.pairs, found.note) == ([], "This run has no journal that was closed, so no training samples.")


def test_a_damaged_journal_is_told(tmp_path):
    write_journal(tmp_path, write_config(tmp_path), [["one"]])
    for path in (tmp_path / "journal").glob("*.parquet"):
        path.write_bytes(b"no parquet")
    run = read_run(tmp_path)
    assert read_samples(run).note.startswith("The journal cannot be read: ")
    assert staleness_of(run) == {}


def test_staleness_is_counted_over_the_journal(tmp_path):
    write_journal(tmp_path, write_config(tmp_path), [["one", "two"], ["three"]])
    assert staleness_of(read_run(tmp_path)) == {0: 3}


# ---------------------------------------------------------------- timeline


def test_a_timeline_is_of_the_times_that_are_recorded(tmp_path):
    """The first update took its own 4 s, the second 10 s with 5 of training; then the clock went back."""
    write_config(tmp_path, replay={"updates_per_publish": 2})
    times = [(100.0, 4.0), (110.0, 5.0), (50.0, 2.0)]
    lines = [{"step": n, "time": time, "seconds": seconds} for n, (time, seconds) in enumerate(times, 1)]
    write_lines(tmp_path, lines)
    (tmp_path / "checkpoints" / "update-0000003").mkdir(parents=True)
    lanes, seconds = lanes_of(read_run(tmp_path))
    assert seconds == 16.0
    assert [lane.name for lane in lanes] == [
        "learner: share of the time spent training",
        "publications: 1",
        "checkpoints that are kept: 1",
    ]
    assert lanes[0].stretches == [(0.0, 4.0, 1.0), (4.0, 14.0, 0.5), (14.0, 16.0, 1.0)]
    assert lanes[1].moments == [(14.0, "version 1 after update 2")]
    assert lanes[2].moments == [(16.0, "checkpoint after update 3")]


def test_many_publications_are_drawn_in_part_and_it_says_so(tmp_path):
    write_config(tmp_path)
    write_lines(tmp_path, [{"step": n, "time": float(n), "seconds": 0.5} for n in range(1, 1001)])
    lanes, seconds = lanes_of(read_run(tmp_path))
    assert seconds == 999.5
    assert (len(lanes[0].stretches), len(lanes[1].moments)) == (250, 200)
    assert lanes[1].name == "publications: 1,000, one of 5 is drawn"


def test_lines_without_times_make_no_timeline(tmp_path):
    write_lines(tmp_path, [{"step": 1, "loss": 1.0}])
    assert lanes_of(read_run(tmp_path)) == ([], 0.0)


def test_a_summary_alone_is_enough_for_a_run(tmp_path):
    summary_of().write(tmp_path / "summary.json")
    assert read_run(tmp_path).updates == 4
