"""`offbeat plan` from runs and from numbers: what it measures, what it predicts, what it prints, what it refuses."""

from __future__ import annotations

import json

import pytest

from actors.errors import UsageError
from launch.cli import main
from launch.plan.derive import Given, differences, from_run
from launch.plan.model import rank_speed
from launch.plan.prediction import predict
from launch.plan.recorded import read_run
from launch.plan.split import Cards, candidates
from launch.settings.loading import dump_config, load_config
from tests.launch.plan.runs import model_of, run_of

NUMBERS = ("--generator-spread", "0", "--driver-seconds", "0", "--efficiency", "1", "--batching", "1")


def planned(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["plan", *map(str, arguments)]) == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- from a run


@pytest.mark.parametrize("overrides", [(), ("replay.max_staleness=0",), ("generators.count=3",)])
@pytest.mark.parametrize("update", [1.0, 8.0])
def test_a_run_predicts_itself(tmp_path, overrides, update):
    run_of(tmp_path / "run", *overrides, update=update)
    run = read_run(tmp_path / "run")
    measured, found = run.measured(), predict(from_run(run, Given()).model)
    assert found.groups_per_second == pytest.approx(measured.groups_per_second, rel=0.03)
    assert found.staleness_mean == pytest.approx(measured.staleness_mean, abs=0.1)
    for role in ("generator", "learner"):
        assert getattr(found, role) == pytest.approx(getattr(measured, role), abs=0.04)


def test_the_parameters_of_a_run_are_found_again(tmp_path):
    run_of(tmp_path / "run")
    derived = from_run(read_run(tmp_path / "run"), Given())
    model = derived.model
    assert model.generators.group.mean == pytest.approx(0.5, rel=0.05)
    assert model.learner.update.mean == pytest.approx(2.0)
    assert model.learner.publish_seconds == pytest.approx(0.25)
    assert model.learner.pause_seconds == pytest.approx(0.125)
    assert model.generators.take_seconds == pytest.approx(0.5, rel=0.1)
    assert model.judges.seconds == pytest.approx(0.01)
    sources = {value.name: value.source for value in derived.values}
    assert {name for name, source in sources.items() if source == "assumed"} == {
        "batching",
        "driver_seconds",
        "efficiency",
        "generator_spread",  # without a journal
    }


@pytest.mark.parametrize(
    "settings", [["replay.max_staleness=0"], ["generators.count=3"], ["replay.prompts_per_update=16"]]
)
def test_other_settings_are_predicted_as_a_run_with_them_would_end(tmp_path, capsys, settings):
    run_of(tmp_path / "run")
    given = [option for each in settings for option in ("--set", each)]
    found = planned(capsys, tmp_path / "run", *given)["outcomes"]["with --set"]
    really = predict(model_of(load_config(tmp_path / "run" / "config.yaml", settings)), seed=3)
    assert found["groups_per_second"] == pytest.approx(really.groups_per_second, rel=0.05)
    assert found["staleness"]["mean"] == pytest.approx(really.staleness_mean, abs=0.1)


def test_another_run_is_predicted_beside_what_it_measured(tmp_path, capsys):
    run_of(tmp_path / "one")
    run_of(tmp_path / "other", "generators.count=2", "replay.max_staleness=0", "updates=40")
    found = planned(capsys, tmp_path / "one", "--against", tmp_path / "other")
    assert found["subject"] == f"run {tmp_path / 'other'}, predicted from {tmp_path / 'one'}"
    assert found["outcomes"]["measured"]["updates"] == found["outcomes"]["predicted"]["updates"] == 40
    assert abs(found["errors"]["groups_per_second"]) < 0.05
    assert abs(found["errors"]["generator_idle"]) < 0.05


def test_settings_whose_effect_is_not_known_are_named(tmp_path, capsys):
    config = run_of(tmp_path / "run")
    other = load_config(tmp_path / "run" / "config.yaml", ["sampling.max_new_tokens=3", "replay.max_staleness=4"])
    assert differences(config, other) == {"sampling.max_new_tokens"}
    found = planned(capsys, tmp_path / "run", "--set", "sampling.max_new_tokens=3")
    assert "seconds stay as measured, although these settings differ: sampling.max_new_tokens" in found["notes"]


def test_evaluations_are_left_out_of_a_group_s_seconds(tmp_path):
    """Baseline, two evaluations and the last: 4 x 30 of 60 x 32 + 120 groups are not of leases, 60 of them before or
    after learning."""
    path = tmp_path / "run" / "config.yaml"
    run_of(tmp_path / "run")
    path.write_text(dump_config(load_config(path, ["evaluation.prompts=30", "evaluation.every_updates=20"])))
    run = read_run(tmp_path / "run")
    assert (run.evaluations, run.sampled, run.sampled_in_all) == (2, 1920 + 60, 1920 + 120)
    assert run.generating == pytest.approx(run.budget("generator", "generating") * 1980 / 2040)


def test_lines_for_people_have_both_columns_and_every_source(tmp_path, capsys):
    run_of(tmp_path / "run")
    assert main(["plan", str(tmp_path / "run"), "--update-seconds", "4"]) == 0
    out = capsys.readouterr().out
    assert "measured  predicted" in out
    assert "the prediction is off by" in out
    for part in ("measured:\n  generator seconds", "given:\n  update seconds 4\n", "assumed:\n"):
        assert part in out
    assert "the run was on CPUs" in out


# ---------------------------------------------------------------- from numbers, and splits


def test_the_best_split_is_where_both_sides_are_equally_fast(capsys):
    """A group of 3 s and an update of 1 s: 6 generators make 2 groups/s, 2 ranks train 2 updates/s."""
    found = planned(
        capsys, "--generator-seconds", 3, "--update-seconds", 1, "--gpus", 8, "--price", 2.5, *NUMBERS,
        "--set", "replay.prompts_per_update=1", "--set", "replay.max_staleness=8", "--set", "updates=2000",
        "--set", "generators.max_running_prompts=1",
    )  # fmt: skip
    best = found["splits"][0]
    assert (best["generators"], best["ranks"]) == (6, 2)
    assert best["groups_per_second"] == pytest.approx(2.0, rel=0.01)
    assert best["gpu_hours"] == pytest.approx(8 * 1000 / 3600, rel=0.01)
    assert best["money"] == pytest.approx(2.5 * best["gpu_hours"])
    rates = {(each["generators"], each["ranks"]): each["groups_per_second"] for each in found["splits"]}
    assert rates[7, 1] == pytest.approx(1.0, rel=0.01)
    assert rates[5, 3] == pytest.approx(5 / 3, rel=0.01)
    assert len(rates) == 7


def test_splits_count_the_gpus_of_an_engine_and_of_everything_else():
    assert candidates(8, Cards(generator=2.0, rank=1.0)) == [(3, 1), (3, 2), (2, 3), (2, 4), (1, 5), (1, 6)]
    assert candidates(4, Cards(generator=0.5, rank=1.0, other=1.0)) == [(4, 1), (2, 2)]
    with pytest.raises(UsageError, match=r"--gpus 2: one generator and one learner rank reserve 5 GPUs; give --gpus 5"):
        candidates(2, Cards(generator=4.0))


def test_a_split_of_a_run_starts_from_its_own_ranks(tmp_path, capsys):
    run_of(tmp_path / "run", "replay.max_staleness=4")
    found = planned(capsys, tmp_path / "run", "--gpus", 4, "--efficiency", 0.5)
    assert {(each["generators"], each["ranks"]) for each in found["splits"]} == {(3, 1), (2, 2), (1, 3)}
    assert found["splits"][0]["groups_per_second"] == max(each["groups_per_second"] for each in found["splits"])


def test_ranks_add_what_the_efficiency_says():
    assert [rank_speed(ranks, 0.5) for ranks in (1, 2, 3)] == [1.0, 1.5, 2.0]


# ---------------------------------------------------------------- errors


def test_missing_numbers_are_named(capsys):
    assert "--update-seconds is missing; give it (seconds)" in refused(capsys, "--generator-seconds", 1)
    assert "--generator-seconds is missing" in refused(capsys, "--gpus", 8)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--update-seconds", "0", "above 0"),
        ("--take-seconds", "-1", "0 or more"),
        ("--batching", "0.5", "at least 1"),
        ("--efficiency", "1.5", "above 0 and at most 1"),
        ("--price", "-2", "above 0"),
        ("--gpus", "0", "above 0"),
        ("--gpus", "100001", "above 0, and at most 100000"),
        ("--generator-seconds", "inf", "above 0, and at most 1e+09"),
        ("--publish-seconds", "1e+300", "0 or more, and at most 1e+09"),
        ("--price", "inf", "above 0, and at most 1e+09"),
    ],
)
def test_a_number_that_no_run_can_have_is_refused(capsys, option, value, allowed):
    error = refused(capsys, option, value)
    assert f"{option}: given {value}; allowed: {allowed}" in error


def test_groups_that_outlast_their_leases_are_refused_instead_of_simulated_for_ever(capsys):
    error = refused(capsys, "--generator-seconds", 10_000, "--update-seconds", 1)
    assert (
        "waits for 1000 times replay.lease_seconds 600 without a batch: groups take longer than their leases" in error
    )


def test_updates_that_last_much_longer_than_a_lease_are_predicted_at_once(capsys):
    """Leases were looked at 1,667 times in each update."""
    assert (
        main(["plan", "--generator-seconds", "1", "--update-seconds", "250000", "--set", "updates=50", "--json"]) == 0
    )


def test_a_directory_that_is_no_ended_run_is_refused(tmp_path, capsys):
    assert "has no config.yaml, so it is not the directory of a training run" in refused(capsys, tmp_path)
    run_of(tmp_path / "run")
    summary = tmp_path / "run" / "summary.json"
    summary.write_text('{"status": "failed", "error": "x"}')
    assert "ended before it trained on anything" in refused(capsys, tmp_path / "run")
    summary.write_text('{"status": "interrupted", "updates": 6, "staleness": {"histogram": {}}}')
    assert "trained on nothing since its last resume" in refused(capsys, tmp_path / "run")
    summary.unlink()
    assert "has no summary.json: the run goes on" in refused(capsys, tmp_path / "run")


def test_against_needs_a_run_and_takes_its_settings(tmp_path, capsys):
    assert "--against needs a run to predict from" in refused(capsys, "--against", tmp_path)
    error = refused(capsys, tmp_path, "--against", tmp_path, "--set", "updates=3")
    assert "leave out --set and --gpus" in error


@pytest.mark.parametrize(
    "summary", ["[1]", "{}", '{"staleness": 3}', '{"staleness": {"histogram": {"0": 4}}, "groups_per_second": "x"}']
)
def test_a_summary_that_no_run_wrote_is_refused(summary, tmp_path, capsys):
    run_of(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(summary)
    assert "give a" in refused(capsys, tmp_path / "run")


def test_lines_of_metrics_that_no_run_wrote_are_left_out(tmp_path):
    run_of(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as lines:
        lines.write(b'\n[1]\n5\n{"seconds": "x"}\n\xff\x00\n')
    assert read_run(tmp_path / "run").update_seconds == (2.0,) * 60
