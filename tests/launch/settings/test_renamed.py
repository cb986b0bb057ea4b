"""Settings under old names: refused with the new one, but read where an older version wrote them (a made-up table)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

from actors.errors import UsageError
from actors.settings import Settings
from launch.cli import main
from launch.settings import renamed
from launch.settings.fields import settings
from launch.settings.loading import dump_config, load_config, with_current_keys
from launch.settings.renamed import new_key, new_value, with_new_keys
from launch.settings.verbs import VERBS, Verb

TABLE = {"opponent": "learner.loss.opponent", "learner.correction": "learner.loss.correction", "rate": "learner.lr"}


class Opponent(Settings):
    """Whom games are played against."""

    share: float = Field(default=0.5, ge=0.0, description="of the reference")
    port: int = Field(default=0, ge=0, description="where it listens")


class Correction(Settings):
    """Importance weights."""

    cap: float = Field(default=2.0, ge=1.0, description="largest weight")


class Pairs(Settings):
    """A loss on pairs."""

    kind: Literal["dpo", "ipo"] = Field(default="dpo", description="which")
    beta: float = Field(default=0.1, ge=0.0, description="strength")


class Games(Settings):
    """A loss on games."""

    kind: Literal["nash"] = Field(default="nash", description="which")
    tau: float = Field(default=0.2, ge=0.0, description="weight")
    opponent: Opponent = Field(default_factory=Opponent)
    correction: Correction = Field(default_factory=Correction)


class Learner(Settings):
    """How it learns."""

    loss: Pairs | Games = Field(default_factory=Pairs, discriminator="kind", description="the loss")
    lr: float = Field(default=0.1, gt=0.0, description="learning rate")


class Config(Settings):
    """A configuration with a section that comes in kinds, which have sections."""

    learner: Learner = Field(default_factory=Learner)
    updates: int = Field(default=1, ge=1, description="steps")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Verb:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    return Verb("learn", f"{__name__}:Config", "", "updates=2", tmp_path / "presets")


def written(directory: Path, tree: dict[str, Any], name: str = "run.yaml") -> Path:
    path = directory / name
    path.write_text(yaml.safe_dump(tree))
    return path


def recorded_by_an_older_version(kind: str) -> dict[str, Any]:
    """It recorded every setting, whatever the loss read."""
    return {
        "learner": {"loss": {"kind": kind, "beta": 0.3, "tau": 0.4}, "correction": {"cap": 3.0}},
        "opponent": {"share": 0.25, "port": 7},
        "rate": 0.01,
        "updates": 5,
    }


def test_the_table_of_today_names_only_settings_that_exist() -> None:
    known = {
        ".".join(setting.key.split(".")[:depth])
        for verb in VERBS.values()
        for setting in settings(verb.model)
        for depth in range(1, setting.key.count(".") + 2)
    }
    assert not set(renamed.RENAMED.values()) - known
    assert not set(renamed.RENAMED) & known


def test_a_key_below_a_renamed_section_is_renamed_with_it(verb: Verb) -> None:
    assert new_key("opponent") == "learner.loss.opponent"
    assert new_key("opponent.share") == "learner.loss.opponent.share"
    assert new_key("learner.loss.opponent") is None
    assert new_key("opponents") is None


def test_the_longest_entry_of_the_table_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", {"a": "b.c", "a.x": "b.d.y"})
    assert [new_key(key) for key in ("a.x", "a.z")] == ["b.d.y", "b.c.z"]
    assert with_new_keys({"a": {"x": 1, "z": 2}, "b": {"e": 3}}) == {"b": {"e": 3, "d": {"y": 1}, "c": {"z": 2}}}


def test_old_keys_of_a_file_and_of_overrides_are_refused_with_the_new_ones_beside_every_other_mistake(
    verb: Verb, tmp_path: Path
) -> None:
    path = written(tmp_path, {"opponent": {"share": 0.1}, "learner": {"loss": {"kind": "nash"}}, "updates": 0})
    with pytest.raises(UsageError) as caught:
        load_config(path, ["learner.correction.cap=3", "rate=1", "learner.lrr=2"], verb)
    assert sorted(str(caught.value).splitlines()[1:-1]) == [
        "  learner.correction: renamed to learner.loss.correction; write it there",
        "  learner.lrr: no such setting; nearest: learner.lr",
        "  opponent: renamed to learner.loss.opponent; write it there",
        "  rate: renamed to learner.lr; write it there",
        "  updates: given 0; allowed: integer >= 1",
    ]


def test_an_older_value_is_read_from_a_recorded_configuration_and_named_to_who_writes_it_anew() -> None:
    """`reward_pg` is RLOO."""
    assert with_new_keys({"learner": {"loss": {"kind": "reward_pg"}}}) == {"learner": {"loss": {"kind": "rloo"}}}
    older = {"watchdog": {"tell_seconds": 3.0}, "divergence": {"action": "tell"}}
    assert with_new_keys(older) == {"watchdog": {"warn_seconds": 3.0}, "divergence": {"action": "warn"}}
    assert with_new_keys({"learner": {"loss": None}, "updates": 1}) == {"learner": {"loss": None}, "updates": 1}
    assert (new_value("learner.loss.kind", "dpo"), new_value("name", "reward_pg")) == ("dpo", "reward_pg")
    with pytest.raises(UsageError, match=r"learner\.loss\.kind: given 'reward_pg'; allowed: .*; nearest: rloo"):
        load_config(None, ["model.path=/m", "learner.loss.kind=reward_pg"])


def test_another_verb_without_the_new_key_knows_nothing_of_the_old_one(verb: Verb) -> None:
    with pytest.raises(UsageError, match=r"opponent: no such setting"):
        load_config(None, ["model.path=/m", "opponent.share=1"], VERBS["sft"])


def test_a_setting_of_another_kind_is_refused_with_its_owners_at_every_depth(verb: Verb) -> None:
    with pytest.raises(UsageError, match=r"loss\.opponent: not a setting of learner\.loss of kind ipo \(it belongs to"):
        load_config(None, ["learner.loss.kind=ipo", "learner.loss.opponent.share=1"], verb)
    owners = {setting.key: setting.only_for for setting in settings(Config)}
    assert owners["learner.loss.beta"] == ("dpo", "ipo")
    assert owners["learner.loss.opponent.share"] == ("nash",)
    assert owners["learner.lr"] == ()


def test_what_an_older_version_recorded_is_read_under_the_new_keys(verb: Verb, tmp_path: Path) -> None:
    path = written(tmp_path, recorded_by_an_older_version("nash"))
    with pytest.raises(UsageError, match=r"opponent: renamed"):
        load_config(path, [], verb)
    loss = Games(tau=0.4, opponent=Opponent(share=0.25, port=7), correction=Correction(cap=3.0))
    expected = Config(learner=Learner(loss=loss, lr=0.01), updates=5)
    assert load_config(path, [], verb, older=True) == expected
    path.write_text(dump_config(expected))
    assert load_config(path, [], verb, older=True) == load_config(path, [], verb) == expected


def test_settings_that_the_recorded_loss_did_not_read_are_dropped(verb: Verb, tmp_path: Path) -> None:
    path = written(tmp_path, recorded_by_an_older_version("ipo"))
    assert load_config(path, [], verb, older=True).learner == Learner(loss=Pairs(kind="ipo", beta=0.3), lr=0.01)


def test_the_command_line_of_an_older_run_is_understood_too_and_wins(verb: Verb, tmp_path: Path) -> None:
    path = written(tmp_path, recorded_by_an_older_version("nash"))
    overrides = ["opponent.share=0.75", "learner.loss.opponent.port=8", "rate=0.5"]
    learner = load_config(path, overrides, verb, older=True).learner
    assert (learner.loss.opponent, learner.lr) == (Opponent(share=0.75, port=8), 0.5)


@pytest.mark.parametrize(
    ("tree", "mistake"),
    [
        ({"opponent": {"shar": 0.1}, "learner": {"loss": {"kind": "nash"}}}, "opponent.shar: no such setting"),
        ({"rate": 0.1, "learner": {"lr": 0.2}}, "rate: renamed to learner.lr; write it there"),
        ({"rate": 0.1, "learner": 3}, "learner: given 3; allowed: a section"),
        ({"rate": 0.1, "learner": [3]}, "learner: given [3]; allowed: a section"),
        ({"learner.loss.tau": 0.1}, "learner.loss.tau: "),
    ],
    ids=["a mistyped key", "both the old and the new", "no section", "a list", "dots within a key"],
)
def test_older_files_hide_no_mistake(verb: Verb, tmp_path: Path, tree: dict[str, Any], mistake: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(written(tmp_path, tree), [], verb, older=True)
    assert mistake in str(caught.value)


def test_an_empty_section_takes_what_moves_there(verb: Verb, tmp_path: Path) -> None:
    assert load_config(written(tmp_path, {"learner": None, "rate": 0.5}), [], verb, older=True).learner.lr == 0.5


@pytest.mark.parametrize("beside", [".lock", "summary.json"])
def test_the_file_that_a_run_wrote_into_its_directory_is_known_for_one(verb: Verb, tmp_path: Path, beside: str) -> None:
    path = written(tmp_path, recorded_by_an_older_version("nash"), "config.yaml")
    with pytest.raises(UsageError, match="renamed"):
        load_config(path, [], verb)
    (tmp_path / beside).touch()
    assert load_config(path, [], verb).learner.lr == 0.01
    with pytest.raises(UsageError, match=r"rate: renamed to learner\.lr"):
        load_config(path, ["rate=1"], verb)


def test_parts_of_a_configuration_are_mapped_too(verb: Verb) -> None:
    """As the journal records them: the learner's settings among others."""
    part = {"updates": 5, "opponent": {"share": 0.25}, "learner": {"loss": {"kind": "dpo", "tau": 1.0}}, "more": 1}
    assert with_current_keys(part, Config) == {"updates": 5, "learner": {"loss": {"kind": "dpo"}}, "more": 1}


def test_resuming_on_the_command_line_accepts_old_keys_and_starting_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(renamed, "RENAMED", {"steps": "updates", "replay.bound": "replay.max_staleness"})
    calls: list[Any] = []
    monkeypatch.setattr("launch.train.run_training", lambda config, resume: calls.append((config, resume)) or 0)
    path = written(tmp_path, {"model": {"path": "world"}, "steps": 7})
    assert main(["train", str(path), "replay.bound=3"]) == 2
    assert "replay.bound: renamed to replay.max_staleness; write it there" in capsys.readouterr().err
    assert main(["train", str(path), "replay.bound=3", "--resume"]) == 0
    ((config, resume),) = calls
    assert (config.updates, config.replay.max_staleness, resume) == (7, 3, True)
