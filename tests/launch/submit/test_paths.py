"""Which paths a configuration names, and which of them each place cannot see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.settings.fields import settings
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.submit.paths import (
    LocalPath,
    Mount,
    local_paths,
    mounts,
    unseen_by_nodes,
    unseen_by_upload,
    unseen_in_container,
    unseen_in_pods,
)

REWARD = "judging.judge={kind: reward_model, path: %s}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory with a model, prompts and a judge's module."""
    for folder in ("models/policy", "data", "runs"):
        (tmp_path / "w" / folder).mkdir(parents=True)
    (tmp_path / "w" / "data" / "prompts.jsonl").write_text("{}\n")
    (tmp_path / "w" / "my_judge.py").write_text("")
    return tmp_path / "w"


def config_of(*overrides: str) -> RunConfig:
    return load_config(None, ["model.path=world", *overrides])


def found(tree: Path, *overrides: str) -> dict[str, Path]:
    return {each.setting: each.path for each in local_paths(config_of(*overrides), tree)}


def path(tree: Path, value: str, kind: Any = "input") -> LocalPath:
    return LocalPath("s", value, Path(tree / value), kind)


# ---------------------------------------------------------------- what is a path


def test_models_data_judges_modules_and_the_output_are_listed_from_the_working_directory(tree):
    overrides = ["model.path=models/policy", "prompts.source=./data/prompts.jsonl", "model.tokenizer=/shared/tokenizer"]
    judge = "judging.judge={kind: function, path: 'my_judge:score'}"
    assert found(tree, *overrides, judge) == {
        "model.path": tree / "models" / "policy",
        "model.tokenizer": Path("/shared/tokenizer"),
        "prompts.source": tree / "data" / "prompts.jsonl",
        "judging.judge.path": tree / "my_judge.py",
        "output": tree / "runs" / "run",
    }


def test_members_of_an_ensemble_are_listed_one_by_one(tree):
    members = "{judge: {kind: reward_model, path: ../reward}}, {judge: {kind: function, path: 'my_judge:score'}}"
    listed = found(tree, f"judging.judge={{kind: ensemble, members: [{members}]}}")
    assert listed["judging.judge.members[0].judge.path"] == tree.parent / "reward"
    assert listed["judging.judge.members[1].judge.path"] == tree / "my_judge.py"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.path=world", "prompts.source=world"],
        ["model.path=Qwen/Qwen2.5-0.5B", "prompts.source=instructions"],
        ["prompts.source=openai/gsm8k:main"],
        ["judging.judge={kind: function, path: 'installed.judges:score'}"],
        ["model.chat_template='{% for m in messages %}{{ m.content }}{% endfor %}'"],
    ],
)
def test_hub_names_what_comes_with_offbeat_and_texts_are_no_paths(tree, overrides):
    assert list(found(tree, *overrides)) == ["output"]


def test_a_folder_that_is_named_as_what_comes_with_offbeat_is_not_what_is_meant(tree):
    (tree / "world").mkdir()
    (tree / "instructions").mkdir()
    assert list(found(tree, "model.path=world", "prompts.source=instructions")) == ["output"]


def test_a_missing_file_is_still_a_path(tree):
    assert found(tree, "prompts.source=data/none.jsonl")["prompts.source"] == tree / "data" / "none.jsonl"


def test_every_setting_that_names_a_file_or_directory_is_listed_or_known_to_be_none():
    """A new setting of that kind must be added to `local_paths`, or here."""
    listed = {"output", "model.path", "model.reference", "model.tokenizer", "model.chat_template", "prompts.source"}
    listed |= {
        "prompts.validation_source",
        "judging.judge.path",
        "judging.judge.tokenizer",
        "sampling.environment.path",
    }
    no_paths = {"name", "prompts.on_malformed", "learner.lora.save", "tracking.wandb.mode", "tracking.mlflow.uri"}
    words = ("directory", "file", "path", "hub")
    named = {each.key for each in settings(RunConfig) if str in each.types}
    telling = {
        each.key
        for each in settings(RunConfig)
        if each.key in named and any(word in each.description.lower() for word in words)
    }
    assert telling - listed - no_paths == set()
    assert listed - named == set()


# ---------------------------------------------------------------- what places see


def test_an_upload_lacks_what_is_excluded_outside_ignored_or_of_this_machine(tree):
    paths = [
        path(tree, "models/policy"),
        path(tree, "data/prompts.jsonl"),
        path(tree, "data"),
        LocalPath("s", "../elsewhere", tree.parent / "elsewhere", "input"),
        LocalPath("s", str(tree / "data"), tree / "data", "input"),
        LocalPath("s", "/shared/model", Path("/shared/model"), "input"),
        path(tree, "none.jsonl"),
        path(tree, "my_judge.py", "code"),
        path(tree, "runs/run", "output"),
    ]
    told = list(unseen_by_upload(paths, tree, ["models", "runs"], [tree / "data" / "prompts.jsonl"]))
    wanted = [
        "models/policy lies in models/, which is not uploaded",
        "data/prompts.jsonl is named by .gitignore",
        "../elsewhere is outside the working directory",
        f"{tree / 'data'} is a path of this machine",
        "none.jsonl does not exist in the working directory",
        "runs/run is written to the job's copy of the working directory, which Ray removes",
    ]
    assert [part in sentence for part, sentence in zip(wanted, told, strict=True)] == [True] * len(wanted)


def test_nodes_do_not_share_what_lies_on_one_machine():
    shared, own = Path("/shared/model"), Path("/tmp/model")
    paths = [LocalPath("a", str(shared), shared, "output"), LocalPath("b", str(own), own, "output")]
    assert [told.partition(":")[0] for told in unseen_by_nodes(paths)] == ["b"]


def test_pods_see_what_is_on_a_volume(tree):
    volumes = [Mount(Path("/data")), Mount(Path("/models"), read_only=True)]
    paths = [
        path(tree, "models/policy"),
        LocalPath("s", "/models/x", Path("/models/x"), "input"),
        LocalPath("elsewhere", "/home/me/x", Path("/home/me/x"), "input"),
        LocalPath("output", "/models/run", Path("/models/run"), "output"),
        path(tree, "my_judge:score", "code"),
    ]
    first, second, third = unseen_in_pods(paths, volumes)
    assert first.startswith("elsewhere: /home/me/x is on no volume (/data, /models)")
    assert second.startswith("output: /models/run is on the read-only volume /models")
    assert "pods import it if it is in the image, or in the folder" in third
    assert len(list(unseen_in_pods(paths[:1], []))) == 1


# ---------------------------------------------------------------- mounting


def test_everything_is_mounted_at_its_own_path_and_only_directory_and_output_may_be_written(tree, tmp_path):
    (tmp_path / "reward").mkdir()
    config = tmp_path / "elsewhere.yaml"
    config.write_text("")
    paths = local_paths(config_of("model.path=models/policy", REWARD % "../reward", "output=/results/run"), tree)
    assert mounts(paths, tree, config) == [
        Mount(tree),
        Mount(Path("/results/run")),
        Mount(tmp_path / "reward", read_only=True),
        Mount(config, read_only=True),
    ]


def test_targets_of_symbolic_links_are_mounted_too(tree, tmp_path):
    """A model may be a link; in the hub's cache its files are links to another folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to(blobs / "1")
    (tree / "models" / "linked").symlink_to(snapshot)
    paths = local_paths(config_of("model.path=models/linked"), tree)
    assert {mount.path for mount in mounts(paths, tree, None)} == {tree, blobs, snapshot}


def test_what_is_not_there_is_told_and_not_mounted(tree):
    paths = local_paths(config_of("model.path=/nowhere/model"), tree)
    assert [mount.path for mount in mounts(paths, tree, None)] == [tree]
    [told] = unseen_in_container(paths)
    assert told.startswith("model.path: /nowhere/model does not exist here")
