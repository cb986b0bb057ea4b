"""A second run beside the first: what is found again of a machine that one run alone does not show."""

from __future__ import annotations

import json

import pytest

from launch.cli import main
from launch.plan.derive import Given
from launch.plan.prediction import predict
from launch.plan.recorded import read_run
from launch.plan.second import crossing, fixed_seconds, from_runs
from launch.settings.loading import load_config
from tests.launch.plan.runs import model_of, run_of

HALF = "replay.prompts_per_update=16"


def test_the_fixed_part_of_an_update_is_the_line_through_both_at_no_prompts() -> None:
    """32 prompts in 5 s and 16 in 3 s: 1/8 s each and 1 s without any."""
    assert fixed_seconds((32, 5.0), (16, 3.0)) == pytest.approx(1.0)
    assert fixed_seconds((16, 3.0), (32, 5.0)) == pytest.approx(1.0)
    assert fixed_seconds((32, 5.0), (16, 1.0)) == 0.0  # noise: less than half for half
    assert fixed_seconds((32, 5.0), (16, 6.0)) == 5.0  # noise: more for fewer


def test_a_change_of_sign_is_found_and_without_one_the_closer_end_is_taken() -> None:
    assert crossing(lambda x: x - 10.0, 1.0, 256.0) == pytest.approx(10.0, rel=0.09)
    assert crossing(lambda x: 10.0 - x, 1.0, 256.0) == pytest.approx(10.0, rel=0.09)
    assert crossing(lambda x: x + 1.0, 1.0, 256.0) == 1.0
    assert crossing(lambda x: -1.0 / x, 1.0, 256.0) == 256.0


def test_a_smaller_update_is_predicted_from_two_sizes(tmp_path, capsys) -> None:
    """Of 4 s for 32 prompts 2 are fixed: 8 prompts take 2.5 s, not 1."""
    run_of(tmp_path / "one", "updates=20", fixed=2.0)
    run_of(tmp_path / "two", "updates=20", HALF, fixed=2.0)
    derived = from_runs(read_run(tmp_path / "one"), read_run(tmp_path / "two"), Given())
    assert derived.fixed_seconds == pytest.approx(2.0, rel=0.02)
    settings = ["replay.prompts_per_update=8"]
    really = predict(model_of(load_config(tmp_path / "one" / "config.yaml", settings), fixed=2.0), seed=3)
    errors = {}
    for options in ([], ["--with", str(tmp_path / "two")]):
        assert main(["plan", str(tmp_path / "one"), *options, "--set", *settings, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        errors[bool(options)] = told["outcomes"]["with --set"]["groups_per_second"] / really.groups_per_second - 1.0
    assert abs(errors[True]) < 0.03
    assert errors[False] > 0.3


@pytest.mark.parametrize("batching", [1.5, 20.0])
def test_how_a_generator_slows_is_found_from_another_number_of_them(tmp_path, batching) -> None:
    """The first run's slots are full; three generators share as many groups. 4 is assumed from one run."""
    machine, short = {"batching": batching, "update": 0.5}, ("updates=20", "generators.max_running_prompts=64")
    run_of(tmp_path / "one", *short, **machine)
    run_of(tmp_path / "two", *short, "generators.count=3", **machine)
    derived = from_runs(read_run(tmp_path / "one"), read_run(tmp_path / "two"), Given())
    assert derived.model.generators.batching == pytest.approx(batching, rel=0.25)
    assert {value.name: value.source for value in derived.values}["batching"] == "measured"
    assert derived.fixed_seconds == 0.0


def test_given_numbers_go_before_what_the_second_run_shows(tmp_path) -> None:
    run_of(tmp_path / "one")
    run_of(tmp_path / "two", HALF, "generators.count=2")
    given = Given(batching=7.0, update_seconds=3.0)
    derived = from_runs(read_run(tmp_path / "one"), read_run(tmp_path / "two"), given)
    assert (derived.model.generators.batching, derived.fixed_seconds) == (7.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["replay.max_staleness=4"], "as many generators, prompts per update and groups at a time as"),
        (["sampling.max_new_tokens=3", HALF], "differs from {one} in sampling.max_new_tokens"),
    ],
)
def test_a_second_run_that_shows_no_more_or_another_thing_is_refused(tmp_path, capsys, settings, reason) -> None:
    run_of(tmp_path / "one")
    run_of(tmp_path / "two", *settings)
    assert main(["plan", str(tmp_path / "one"), "--with", str(tmp_path / "two")]) == 2
    assert reason.format(one=tmp_path / "one") in capsys.readouterr().err


def test_a_second_run_needs_a_first(tmp_path, capsys) -> None:
    assert main(["plan", "--with", str(tmp_path)]) == 2
    assert "--with adds to what a first run shows" in capsys.readouterr().err
