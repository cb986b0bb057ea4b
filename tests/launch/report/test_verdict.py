"""Sentences that claim no more than the intervals do."""

from __future__ import annotations

import pytest

from launch.report.records import read_run
from launch.report.verdict import Estimate, difference, verdict
from launch.run.win_rate import WinRate
from tests.launch.report.runs import rose, summary_of, write_config, write_lines, write_rows


def judged(directory, lines=(), settings=None, **summary):
    write_config(directory, **(settings or {}))
    write_lines(directory, lines)
    summary_of(**summary).write(directory / "summary.json")
    return verdict(read_run(directory))


@pytest.mark.parametrize(
    ("rate", "outcome", "sentence"),
    [
        (WinRate(0.7, 0.6, 0.8, 40), "better", "beats the starting policy: win rate 0.700 [0.600, 0.800] (95%"),
        (WinRate(0.3, 0.2, 0.4, 40), "worse", "loses to the starting policy: win rate 0.300 [0.200, 0.400] (95%"),
        (
            WinRate(0.55, 0.45, 0.65, 40),
            "not separable",
            "is not separable from the starting policy: win rate 0.550 [0.450, 0.650], which includes 0.5",
        ),
        (WinRate(0.9, None, None, 1), "not separable", "win rate 0.900 against the starting policy has no interval"),
    ],
)
def test_a_policy_wins_only_if_its_interval_leaves_out_a_half(tmp_path, rate, outcome, sentence):
    found = judged(tmp_path, win_rate=rate)
    assert found.outcome == outcome
    assert sentence in found.sentences[1]


def test_a_rise_whose_interval_includes_zero_is_not_separable(tmp_path):
    found = judged(tmp_path, win_rate=None, reward=rose(0.02, -0.01, 0.05))
    assert found.outcome == "not separable"
    assert found.sentences[1] == (
        "The judge's mean score went from 0.500 to 0.520; the rise of 0.020 [-0.010, 0.050] includes 0, so it is not "
        "separable from none."
    )


def test_a_rise_above_zero_is_a_rise(tmp_path):
    found = judged(tmp_path, win_rate=None, reward=rose(0.2, 0.1, 0.3))
    assert (found.outcome, found.sentences[1]) == (
        "better",
        "The judge's mean score rose by 0.200 from 0.500 to 0.700, rise [0.100, 0.300].",
    )


def test_exploitability_is_compared_with_the_first_that_was_measured(tmp_path):
    lines = [{"step": 10, "exploitability": 0.3}, {"step": 100, "exploitability": 0.1}]
    found = judged(tmp_path, lines, updates=100, win_rate=None, exploitability=0.1, exploitability_tail=0.1)
    assert found.outcome == "better"
    assert found.sentences[1].startswith("Its exploitability went from 0.300 after update 10 to 0.100 (by enumeration")


def test_exploitability_that_ends_where_it_began_is_not_separable(tmp_path):
    """The last tenth varies from 0.28 to 0.32, and it began at 0.30."""
    values = {10: 0.30, 95: 0.28, 100: 0.32}
    lines = [{"step": step, "exploitability": value} for step, value in values.items()]
    found = judged(tmp_path, lines, updates=100, win_rate=None, exploitability=0.32, exploitability_tail=0.31)
    assert found.outcome == "not separable"


def test_better_against_the_start_and_more_exploitable_is_mixed(tmp_path):
    lines = [{"step": 10, "exploitability": 0.3}]
    found = judged(tmp_path, lines, updates=100, exploitability=0.4, exploitability_tail=0.4)
    assert found.outcome == "mixed"


def test_a_failed_run_tells_the_first_line_of_its_error(tmp_path):
    found = judged(tmp_path, status="failed", error="the disk is full; free space there\nat once")
    assert found.status == "failed"
    assert found.sentences[0] == (
        "The run failed after 4 of 4 updates of training unused with the loss dpo: the disk is full; free space there."
    )


def test_a_summary_that_cannot_be_read_is_told_as_such(tmp_path):
    write_config(tmp_path)
    (tmp_path / "summary.json").write_text('{"status": ')
    sentence = verdict(read_run(tmp_path)).sentences[0]
    assert sentence.startswith("How the run ended is not known, because its summary.json cannot be read: Expecting")


def test_a_run_without_a_summary_is_judged_by_its_last_evaluation(tmp_path):
    write_config(tmp_path)
    write_rows(tmp_path, [{"win_rate": 0.7, "win_rate_low": 0.6, "win_rate_high": 0.8}, {"loss": 1.0}])
    found = verdict(read_run(tmp_path))
    assert (found.status, found.outcome) == ("unfinished", "better")
    assert "2 of 4 updates" in found.sentences[0]


def test_a_replay_is_told_as_one_and_not_as_a_run_that_was_killed(tmp_path):
    """`offbeat report RUN/replay` said that the run was ended before it could say why."""
    write_config(tmp_path)
    write_rows(tmp_path, [{"loss": 1.0}])
    (tmp_path / "report.json").write_text('{"run": "runs/chat"}')
    run = read_run(tmp_path)
    assert (run.status, run.missing) == ("replayed", [])
    first, second, *_ = verdict(run).sentences
    assert first.startswith("It is a replay of runs/chat: it trained")
    assert second.startswith("A replay evaluates nothing")


def test_a_run_that_evaluated_nothing_says_so(tmp_path):
    found = judged(tmp_path, win_rate=None)
    assert found.outcome == "not measured"
    assert found.sentences[1] == (
        "Nothing was evaluated yet, so the record does not say whether the policy got better."
    )


def test_staleness_is_told_beside_its_bound(tmp_path):
    """(0*2 + 1*2 + 2*4) / 8 = 1.25"""
    assert judged(tmp_path).sentences[-1] == (
        "Its data were at most 2 versions old, 1.25 on average, and 2 are allowed."
    )


def test_a_run_on_fresh_samples_alone_says_so(tmp_path):
    found = judged(tmp_path, max_staleness_bound=0, staleness={"max": 0, "mean": 0.0, "histogram": {"0": 8}})
    assert found.sentences[-1] == (
        "Every update trained on what its own policy had sampled, as its bound of 0 demands."
    )


def test_staleness_over_the_bound_is_said(tmp_path):
    assert judged(tmp_path, max_staleness_bound=1).sentences[-1].endswith("That is over the bound.")


def test_a_stage_is_judged_by_its_held_out_loss(tmp_path):
    write_lines(
        tmp_path, [{"step": 1, "held_out_loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "held_out_loss": 1.5}]
    )
    found = verdict(read_run(tmp_path))
    assert "Its held-out loss went from 2.000 to 1.500; the run records no interval for it." in found.sentences


def test_the_interval_of_a_difference_joins_both_distances():
    """0.2 with sqrt(0.1^2 + 0.1^2) = 0.1414 on each side."""
    found = difference(Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0586, 0.3414), abs=1e-4)


def test_a_difference_without_an_interval_on_one_side_has_none():
    found = difference(Estimate(0.5), Estimate(0.7, 0.6, 0.8))
    assert (found.low, found.outcome(0.0)) == (None, "not separable")
