"""Options that do not exist, as people type them: what to write instead, ready to type."""

from __future__ import annotations

import pytest

from actors.errors import UsageError
from launch.cli import main
from launch.settings.loading import preset_names
from launch.settings.options import name_and_value
from launch.settings.verbs import DPO, PREFERENCE, SFT, TRAIN, VERBS


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train x --steps 100", "No such option: --steps; write updates=100"),
        ("train x --lr=1e-5", "No such option: --lr; write learner.optimizer.lr=1e-5"),
        ("train x --learning-rate", "No such option: --learning-rate; write learner.optimizer.lr=VALUE"),
        ("train x --learning_rate 1 updates=2", "No such option: --learning_rate; write learner.optimizer.lr=1"),
        ("train x --lr updates=2", "No such option: --lr; write learner.optimizer.lr=VALUE"),
        ("train x --batch-size 8", "No such option: --batch-size; write replay.prompts_per_update=8"),
        ("train x --model X", "No such option: --model; write model.path=X"),
        ("train x --epochs 3", "No such option: --epochs; this run counts updates: set updates to "),
        ("train x --gpus 2", "No such option: --gpus; GPUs are counted by role: set learner.gpus_per_rank=1"),
        ("sft x --epochs 3", "No such option: --epochs; write training.epochs=3"),
        ("sft x --steps 3", "No such option: --steps; the steps follow from the data: set training.epochs"),
        ("dpo x --beta 0.2", "No such option: --beta; write learner.loss.beta=0.2"),
        ("data x --val-size 0.1", "No such option: --val-size; write validation_fraction=0.1"),
        ("evaluate x --temperature 1", "No such option: --temperature; write sampling.temperature=1"),
        ("evaluate x --best_of 4", "No such option: --best_of; write --best-of"),
        ("replay r --lr 1", "No such option: --lr; write --set learner.optimizer.lr=1"),
        ("submit slurm x --lr 1", "No such option: --lr; write learner.optimizer.lr=1"),
        ("sweep x --steps 5", "No such option: --steps; write updates=5"),
        ("train x --dry-run", "No such option: --dry-run; two other verbs start nothing: `offbeat doctor` checks"),
        ("train x --val-data y", "No such option: --val-data; write prompts.validation_source=y"),
        ("train x --val-size 0.1", "No such option: --val-size; write prompts.validation_fraction=0.1"),
        ("train x --resum", "No such option: --resum (Possible options: --resume)"),
        ("verify r --lr 1", "No such option: --lr (Possible options: --help)"),
        ("train x --set updates=3", "No such option: --set; a setting needs none, write updates=3"),
        ("train -c run.yaml", "No such option: -c; the file comes first, without an option: `offbeat train run.yaml`"),
        ("train -h", "No such option: -h; write --help"),
        ("-V", "No such option: -V; write --version"),
        ("train x --xyzzy 1", "No such option: --xyzzy"),
    ],
)
def test_an_option_that_does_not_exist_is_answered(arguments, line, capsys):
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.startswith(f"offbeat: error: {line}")


@pytest.mark.parametrize(
    ("arguments", "line", "help_of"),
    [
        ("samples", "Missing argument 'RUN'; write `offbeat samples RUN`", "offbeat samples"),
        ("compare", "Missing argument 'MODEL MODEL...'; write `offbeat compare MODEL MODEL...`", "offbeat compare"),
        ("verify a b", "Got unexpected extra argument(s) (b); write `offbeat verify RUN`", "offbeat verify"),
        ("samples r --last 0", "Invalid value for '--last': given '0'; allowed: greater than or", "offbeat samples"),
        ("train r --generators x", "Invalid value for '--generators': given 'x'; allowed: a valid", "offbeat train"),
        ("config r --verb foo", "Invalid value for '--verb': given 'foo'; allowed: 'train', 'sft'", "offbeat config"),
        ("run.yaml train", "No such command 'run.yaml'; write `offbeat train run.yaml`", "offbeat"),
        ("help", "No such command 'help'; write --help", "offbeat"),
        ("submit", "Missing command; allowed are compose, kuberay, ray, slurm", "offbeat submit"),
        ("submit foo x", "No such command 'foo'; allowed are compose, kuberay, ray, slurm", "offbeat submit"),
    ],
)
def test_a_wrong_command_line_is_answered_with_what_to_write(arguments, line, help_of, capsys):
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"offbeat: error: {line}")
    assert f"`{help_of} --help` lists" in said


def test_a_key_behind_such_an_option_is_not_shown(capsys):
    assert main(["train", "x", "--hf-token", "hf_aB3dE5fG7hJ9kL1mN2pQ"]) == 2
    err = capsys.readouterr().err
    assert "a key is no setting" in err
    assert "hf_aB3" not in err


@pytest.mark.parametrize("verb", ["train", "doctor", "evaluate", "sft", "preference", "config", "sweep"])
def test_the_help_of_a_verb_lists_all_of_its_presets(verb, capsys):
    assert main([verb, "--help"]) == 0
    said = "".join(capsys.readouterr().out.split()).replace("│", "")
    verbs = {"doctor": [TRAIN], "evaluate": [TRAIN], "config": [TRAIN, SFT, PREFERENCE, DPO]}.get(
        verb, [VERBS.get(verb)]
    )
    names = [name for each in verbs for name in preset_names(each)]
    assert names
    assert [name for name in names if name not in said] == []


@pytest.mark.parametrize("entry", ["X", "=1", "1X=2", "A-B=2", "É=1"])
def test_a_variable_that_no_shell_would_take_is_refused(entry):
    with pytest.raises(UsageError, match="allowed: NAME=VALUE, for example --env HF_HOME=/data/hf"):
        name_and_value(entry)
