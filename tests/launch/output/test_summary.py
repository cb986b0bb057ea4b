"""The summary: names that scripts rely on, a verdict that claims no more than the interval, intervals that cover."""

import json
from io import StringIO

import pytest
from rich.console import Console

from actors.errors import RunError
from launch.output.judging import judging_account
from launch.output.summary import Staleness, Summary, package_versions, verdict
from launch.run.win_rate import Reward, WinRate

LEDGER = {
    "offered": 9632,
    "leased": 9636,
    "trained": 9600,
    "returned": {"generator_died": 4},
    "dropped": {},
    "waiting": 0,
    "in_flight": 30,
    "buffered": 2,
}


def summary(**changes):
    values = {
        "status": "completed",
        "updates": 300,
        "wall_seconds": 252.0,
        "max_staleness_bound": 1,
        "staleness": Staleness.of({0: 1600, 1: 8000}),
        "groups_per_second": 38.2,
        "tokens_per_second": 1611.0,
        "time_budget": {
            "generator": {"generating": 60.0, "updating": 10.0, "idle": 30.0},
            "learner": {"training": 30.0, "waiting": 10.0, "publishing": 0.0},
            "judge": {"judging": 4.2},
        },
        "ledger": LEDGER,
        "judge": "gold",
        "opponent": "the SFT policy",
        "win_rate": WinRate(0.87, 0.85, 0.89, 256),
        "kl": 3.1,
    }
    return Summary(**{**values, **changes})


def rendered(record, width=100):
    console = Console(record=True, width=width, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    record.render(console)
    return console.export_text()


def test_the_file_has_the_names_that_scripts_rely_on(tmp_path):
    summary().write(tmp_path / "summary.json")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["status"] == "completed"
    assert data["updates"] == 300
    assert data["max_staleness_bound"] == 1
    assert data["staleness"] == {"max": 1, "mean": 8000 / 9600, "histogram": {"0": 1600, "1": 8000}}
    assert data["groups_per_second"] == 38.2
    assert data["time_budget"]["generator"] == {"generating": 60.0, "updating": 10.0, "idle": 30.0}
    assert data["ledger"]["returned"] == {"generator_died": 4}
    assert data["win_rate"] == {"value": 0.87, "low": 0.85, "high": 0.89, "n": 256}
    assert data["kl"] == 3.1
    assert data["exploitability"] is None
    assert data["versions"]["torch"]


def test_what_was_not_measured_is_null_and_not_zero(tmp_path):
    summary(win_rate=None, kl=None, staleness=Staleness.of({})).write(tmp_path / "summary.json")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert (data["win_rate"], data["kl"]) == (None, None)
    assert data["staleness"] == {"max": None, "mean": None, "histogram": {}}


def test_staleness_counts_weigh_the_mean_and_zero_counts_do_not_raise_the_maximum():
    """(0*1 + 2*3) / 4 = 1.5"""
    assert Staleness.of({2: 3, 0: 1, 5: 0}) == Staleness(max=2, mean=1.5, histogram={0: 1, 2: 3})


def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"summary\.json: No space left on device"):
        summary().write(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("rate", "outcome"),
    [
        (WinRate(0.87, 0.85, 0.89, 256), "beats"),
        (WinRate(0.53, 0.49, 0.57, 256), "cannot be told from"),
        (WinRate(0.50, 0.50, 0.50, 256), "cannot be told from"),
        (WinRate(0.40, 0.35, 0.45, 256), "loses to"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(rate, outcome):
    assert verdict(summary(win_rate=rate)).startswith(f"policy {outcome} the SFT policy {rate.value:.3f} [")


def test_the_verdict_is_one_sentence_with_judge_and_kl():
    assert verdict(summary()) == (
        "policy beats the SFT policy 0.870 [0.850, 0.890] on the gold judge at KL 3.10 nats (win rate, 95% interval "
        "over 256 different prompts)"
    )
    assert verdict(summary(win_rate=None)) is None
    assert " on the reward model judge " in verdict(summary(judge="reward_model"))


def test_one_prompt_decides_nothing():
    """A single prompt had an interval, and a rise of one prompt an interval of width 0."""
    alone = summary(win_rate=WinRate(1.0, None, None, 1), reward=Reward(1.0, 0.5, 0.5, None, None, 1))
    assert verdict(alone) == (
        "policy against the SFT policy 1.000 on the gold judge at KL 3.10 nats (no interval: 1 prompt)"
    )
    assert "a rise of 0.500 (no interval: 1 prompt)" in rendered(alone)
    flat = summary(reward=Reward(1.0, 0.5, 0.5, None, None, 9))
    assert "a rise of 0.500 (no interval: all 9 prompts rise alike)" in rendered(flat, width=140)
    assert json.loads(alone.model_dump_json())["reward"]["low"] is None


def test_the_end_of_a_run_shows_result_bound_and_where_time_went():
    text = rendered(summary(output="runs/demo"))
    assert "completed: 300 updates in 0:04:12" in text
    assert verdict(summary()) in text
    assert "max 1 of 1 allowed, mean 0.83 (17% at 0, 83% at 1)" in text
    assert "38.2 groups/s, 1,611 tokens/s" in text
    assert "60% generating, 30% idle, 10% updating of 100 s" in text
    assert "75% training, 25% waiting of 40 s" in text
    assert "4 returned (4 generator_died), 0 dropped" in text
    assert "runs/demo" in text


def test_a_log_has_one_line_for_each_fact_and_a_terminal_has_columns():
    """In a pipe they were broken at 80 columns, and filled up with spaces."""
    record = summary(reward=Reward(value=0.75, start=0.5, rise=0.25, low=0.125, high=0.375, n=256))
    out = StringIO()
    record.render(Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert "reward      0.500 at the start, 0.750 at the end, a rise of 0.250 [0.125, 0.375] (95% in" in lines[3]
    assert [line for line in lines if line != line.rstrip() or line.startswith(" ")] == []
    out = StringIO()
    record.render(Console(file=out, width=80, force_terminal=True, color_system=None))
    assert max(map(len, out.getvalue().splitlines()[3:])) <= 80


def test_the_end_of_a_run_shows_how_much_the_reward_rose_unless_the_game_is_known():
    reward = Reward(value=0.75, start=0.5, rise=0.25, low=0.125, high=0.375, n=256)
    assert "0.500 at the start, 0.750 at the end, a rise of 0.250 [0.125, 0.375] (95%" in rendered(
        summary(reward=reward)
    )
    assert "a rise of" not in rendered(summary(reward=reward, exploitability=0.1))
    assert "reward" not in rendered(summary())


def test_a_run_on_games_shows_its_opponents_and_where_the_game_is_known_what_it_leaves_to_exploit():
    games = {
        "opponent_staleness": Staleness.of({0: 30, 1: 10}),
        "exploitability": 0.0625,
        "exploitability_tail": 0.0,
        "preference": 0.725,
        "exact_kl": 1.5,
    }
    text = rendered(summary(**games, opponent_bound=1, max_staleness_bound=3), width=140)
    assert "max 1 of 3 allowed, mean 0.83" in text
    assert "max 1 of 1 allowed, mean 0.25 (75% at 0, 25% at 1)" in text
    assert (
        "exploitability 0.062 (mean of the last tenth 0.000), preferred to the reference 0.725 at KL 1.50 nats" in text
    )
    text = rendered(summary(**games, opponent_bound=None, max_staleness_bound=3), width=140)
    assert "max 1 of 3 allowed, mean 0.25" in text, "drawn with the policy's completions, under their bound"
    assert "exploitability 0.062, preferred" in rendered(summary(**games | {"exploitability_tail": None}), width=140)
    assert "exploitability" not in rendered(summary())
    assert "opponents" not in rendered(summary())


def test_figures_of_games_and_routes_come_back_from_the_file(tmp_path):
    written = summary(
        loss="nash_pg",
        opponent_bound=0,
        opponent_staleness=Staleness.of({0: 8}),
        family_shares=[0.5, 0.3, 0.1],
        staleness_law={"tau": 0.05, "bound": 0.0},
        routes={"nash-md": {"exploitability": 0.05, "exact_kl": None}},
    )
    written.write(tmp_path / "summary.json")
    assert Summary.model_validate_json((tmp_path / "summary.json").read_text()) == written
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["opponent_staleness"] == {"max": 0, "mean": 0.0, "histogram": {"0": 8}}
    assert data["family_shares"] == [0.5, 0.3, 0.1]


def test_a_failed_run_says_so_and_why():
    text = rendered(summary(status="failed", error="no generator is left [0 of 2]", win_rate=None))
    assert "failed: 300 updates" in text
    assert "no generator is left [0 of 2]" in text
    assert "beats" not in text


def test_versions_leave_out_what_is_not_installed():
    versions = package_versions()
    assert versions["python"].startswith("3.")
    assert "ray" in versions
    assert all(versions.values())


def test_what_the_judge_counted_is_in_the_file_and_its_failures_are_told(tmp_path):
    judging = {"groups": 1200.0, "failed_groups": 3.0, "requests": 14400.0, "given_up": 5.0, "cost": 12.25}
    record = summary(judging=judging)
    record.write(tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["judging"] == judging
    line = next(line for line in rendered(record, width=200).splitlines() if line.startswith("judging"))
    assert line.split(maxsplit=1)[1].rstrip() == "3 of 1,200 groups failed, 14,400 requests, 5 given up, cost 12.25"


def test_the_counts_of_an_ensemble_s_members_are_added_up():
    judging = {"groups": 8.0, "1_endpoint.requests": 96.0, "2_served.requests": 8.0, "1_endpoint.abstentions": 2.0}
    assert "104 requests, 2 abstentions" in rendered(summary(judging=judging), width=200)


def test_how_far_to_trust_a_language_model_s_verdicts_is_told():
    figures = {"requests": 100.0, "verdicts": 100.0, "abstentions": 12.0, "cut_off": 11.0, "filtered": 0.0}
    figures |= {"abstention_rate": 0.12, "order_change_rate": 0.375}
    figures |= {"first_place_share": 0.71, "first_place_low": 0.655, "first_place_high": 0.765}
    assert judging_account(figures) == (
        "100 requests, 12 abstentions; 12% of the answers had no verdict: 11 were stopped by the limit on tokens "
        "(raise judging.judge.max_tokens); the first place wins 71% [66%, 76%] (95% interval over groups), 38% of the "
        "pairs change with the order"
    )
    rare = {"2_endpoint.abstentions": 1.0, "2_endpoint.abstention_rate": 0.01, "2_endpoint.first_place_share": 0.5}
    assert judging_account(rare) == (
        "1 abstentions; 2_endpoint: the first place wins 50%, 0% of the pairs change with the order"
    )


def test_a_judge_with_nothing_to_tell_has_no_line():
    lines = rendered(summary(judging={"groups": 8.0, "failed_groups": 0.0})).splitlines()
    assert not [line for line in lines if line.startswith("judging")]


def test_the_account_says_whether_every_prompt_and_grant_is_in_it():
    line = next(line for line in rendered(summary(), width=200).splitlines() if line.startswith("ledger"))
    assert line.rstrip().endswith("30 in_flight, 2 buffered; balanced")
    text = rendered(summary(ledger=LEDGER | {"buffered": 1}), width=300)
    assert "; 9632 prompts offered, 9631 accounted for, 9636 grants, 9635 accounted for" in text


def test_the_end_of_a_run_shows_the_share_of_ties_and_the_epochs():
    text = rendered(summary(ties=850, tie_share=0.85, prompts=64, epochs=125.0), width=140)
    assert "850 pairs, 85% of all, with equal scores and no gradient" in text
    assert "125.00 epochs of 64 prompts" in text
