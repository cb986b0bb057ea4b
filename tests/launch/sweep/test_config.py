"""A sweep's settings: two ways to write an axis, overrides shared out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config, preset_names
from launch.settings.verbs import SWEEP
from launch.sweep.command import PRESETS
from launch.sweep.config import SEED_SETTINGS, as_override, load_sweep
from launch.sweep.plan import plan_rows
from tests.launch.sweep.sweeps import sweep_file


def test_one_setting_with_a_list_of_values_is_an_axis_with_their_labels(tmp_path: Path) -> None:
    short = load_sweep(sweep_file(tmp_path, axes={"bound": {"replay.max_staleness": [0, 4]}}))
    long = load_sweep(
        sweep_file(tmp_path, axes={"bound": {0: {"replay.max_staleness": 0}, "4": {"replay.max_staleness": 4}}})
    )
    assert short.axes == long.axes == {"bound": {"0": {"replay.max_staleness": 0}, "4": {"replay.max_staleness": 4}}}


def test_a_label_may_change_nothing(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, axes={"anchor": {"plain": None, "kept": {"learner.anchor.weight": 0.8}}}))
    assert sweep.axes["anchor"] == {"plain": {}, "kept": {"learner.anchor.weight": 0.8}}


def test_overrides_go_to_the_sweep_if_they_are_its_settings_and_to_all_runs_otherwise(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    sweep = load_sweep(file, ["updates=30", "seeds=[5]", "learner.loss.tau=0.1", "name=other", "model.path=2026"])
    assert (sweep.seeds, sweep.name) == ((5,), "other")
    assert sweep.set == {"updates": 30, "learner.loss.tau": 0.1, "model.path": 2026}
    assert {row.config.model.path for row in plan_rows(sweep)} == {"2026"}, "a text, as on the command line"
    assert load_sweep(file).set == {"updates": 20}


def test_the_first_row_and_the_last_axis_are_the_defaults(tmp_path: Path) -> None:
    axes = {"loss": {"a": {}, "b": {"learner.loss.tau": 0.1}}, "bound": {"replay.max_staleness": [0, 4]}}
    sweep = load_sweep(sweep_file(tmp_path, axes=axes))
    assert (sweep.compared_with, sweep.x_axis) == ({"loss": "a", "bound": "0"}, "bound")
    sweep = load_sweep(sweep_file(tmp_path, axes=axes, compare={"bound": 4}, x="loss"))
    assert (sweep.compared_with, sweep.x_axis) == ({"bound": "4"}, "loss")


def test_seeds_leave_the_game_as_it_is() -> None:
    assert "world.seed" not in SEED_SETTINGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: given []; allowed: list of integers"),
        ({"seeds": [1, 1]}, "seeds: given [1, 1]; allowed: different integers >= 0"),
        ({"seeds": [-1]}, "seeds: given [-1]; allowed: different integers >= 0"),
        ({"axes": {}}, "axes: given {}; allowed: one axis or more"),
        ({"axes": {"bound": [0, 4]}}, "axis bound: given [0, 4]; allowed: `dpo: {learner.loss.kind: dpo}`"),
        ({"axes": {"bound": {"replay.max_staleness": 4}}}, "axis bound: given {replay.max_staleness: 4}; allowed"),
        ({"axes": {"lr": {"learner.optimizer.lr": [1, 1]}}}, "axis lr: given 1, 1; allowed: different labels"),
        ({"axes": {"b/c": {"seeds": [1]}}}, "axis name 'b/c': allowed are letters"),
        ({"axes": {"m": {"model.path": ["/a b"]}}}, "label of axis m '/a b': allowed are letters"),
        ({"compare": {"staleness": 3}}, "compare.staleness 3 is none of the rows; allowed: staleness: 0, 4"),
        ({"compare": {"loss": "dpo"}}, "compare.loss dpo is none of the rows; allowed: staleness: 0, 4"),
        ({"x": "loss"}, "x loss is no axis; allowed: staleness"),
        ({"set": {"seed": 3}}, "seed is given for the runs, and the sweep sets it; leave it out: write `seeds`"),
        (
            {"set": {"output": "/r"}},
            "output is given for the runs, and the sweep sets it; leave it out: every run gets",
        ),
        ({"set": {"replay.max_staleness": 3}}, "set.replay.max_staleness has no effect: every label of axis staleness"),
        (
            {"axes": {"a": {"learner.loss.tau": [1, 2]}, "b": {"p": {}, "q": {"learner.loss.tau": 3}}}},
            "axes a and b both set learner.loss.tau; leave it out of one of them",
        ),
        ({"base": None}, "base: missing; pass base=VALUE"),
        ({"seed": 3}, "seed: no such setting; nearest: seeds"),
    ],
)
def test_a_mistake_is_told_with_what_is_allowed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_sweep(sweep_file(tmp_path, **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["updates", "=3", "updates=[1"])
def test_an_override_that_cannot_be_read_is_told(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError, match=r"not an override; write KEY=VALUE|not valid YAML"):
        load_sweep(sweep_file(tmp_path), [override])


@pytest.mark.parametrize(
    "value", [1e-6, 3e-4, 16, True, None, "on", "a: b", "", [1, 2], {"kind": "dpo", "beta": 0.1}, "x" * 200]
)
def test_a_setting_is_written_as_an_override_that_reads_back(value: Any) -> None:
    from launch.settings.yaml_text import parse_yaml

    key, _, text = as_override("some.key", value).partition("=")
    assert (key, parse_yaml(text)) == ("some.key", value)
    assert "\n" not in text


def test_a_learning_rate_in_exponent_form_reaches_the_run(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, axes={"lr": {"learner.optimizer.lr": [1e-6, 1e-4]}}))
    assert [row.config.learner.optimizer.lr for row in plan_rows(sweep)] == [1e-6, 1e-4]


def test_every_preset_can_be_planned() -> None:
    assert preset_names(SWEEP) == sorted(PRESETS)
    rows = {name: plan_rows(load_sweep(name)) for name in preset_names(SWEEP)}
    bounds = [(row.config.learner.loss.kind, row.config.replay.max_staleness) for row in rows["staleness"]]
    assert bounds == [(loss, bound) for loss in ("dpo", "nash_pg") for bound in (0, 1, 4, 16)]
    assert [row.config.learner.anchor.weight for row in rows["anchor"]] == [0.0, 0.8]
    assert {row.config.replay.max_staleness for row in rows["anchor"]} == {16}
    assert {name: len(rows[name]) for name in ("anchor-cost", "chat-staleness", "robustness")} == {
        "anchor-cost": 4,
        "chat-staleness": 12,
        "robustness": 48,
    }
    assert {row.config.prompts.validation_fraction for row in rows["chat-staleness"]} == {0.25}
    for row in [*rows["staleness"], *rows["anchor"]]:
        assert row.config.world == load_config("embedded-nash-md").world, "the same game in every row"
        assert row.config.evaluation.exact_every_updates > 0
