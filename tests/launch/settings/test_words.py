"""Words of other programs: each is answered with a setting of its verb, or with why there is none."""

from __future__ import annotations

import re

import pytest

from launch.settings import words
from launch.settings.fields import settings
from launch.settings.verbs import VERBS
from launch.settings.words import TABLE, answer, meaning
from launch.settings.yaml_text import read_yaml
from tests.test_texts import Text, wrong_commands, wrong_names, wrong_options

KEYS = {name: {entry.key for entry in settings(verb.model)} for name, verb in VERBS.items()}
ALL = set().union(*KEYS.values())
TYPED = {
    "steps max_steps": ("updates", None),
    "lr learning_rate optim.lr actor_rollout_ref.actor.optim.lr learner.lr": ("learner.optimizer.lr", None),
    "batch_size rollout_batch_size data.train_batch_size": ("replay.prompts_per_update", None),
    "num_generations n_samples_per_prompt actor_rollout_ref.rollout.n": ("sampling.completions_per_prompt", None),
    "beta loss.beta": ("learner.loss.beta", None),
    "loss.kind algorithm.adv_estimator loss_type": ("learner.loss.kind", None),
    "temperature rollout.temperature": ("sampling.temperature", None),
    "max_length max_model_len": ("generators.max_model_len", None),
    "model model_name_or_path model.name pretrain": ("model.path", None),
    "dataset_name prompt_data dataset.name": ("prompts.source", None),
    "bf16": ("learner.dtype", "bfloat16"),
    "output_dir": ("output", None),
    "lora_r lora.r": ("learner.lora.rank", None),
    "max_staleness": ("replay.max_staleness", None),
}
UNANSWERED = [
    *("top_p", "sampling.top_p", "wandb", "report_to", "epochs", "gradient_accumulation_steps", "kl_coef"),
    *("num_gpus", "algorithm.kl_ctrl.kl_coef", "per_device_train_batch_size", "reward_funcs", "fp16"),
    "trust_remote_code",
]


@pytest.mark.parametrize(
    ("word", "setting", "value"), [(word, *means) for listed, means in TYPED.items() for word in listed.split()]
)
def test_a_word_means_a_setting_of_train(word, setting, value):
    found = meaning(word, KEYS["train"])
    assert found is not None
    assert (found.setting, found.value) == (setting, value)


@pytest.mark.parametrize("word", UNANSWERED)
def test_a_word_without_a_setting_is_answered_with_what_to_do(word):
    found = meaning(word, KEYS["train"])
    assert found is not None
    assert re.search(r"set |leave it out|read |use |, or ", found.reason)


@pytest.mark.parametrize(
    ("verb", "word", "setting"),
    [
        ("sft", "epochs", "training.epochs"),
        ("sft", "batch_size", "training.batch_size"),
        ("sft", "max_length", "data.max_tokens"),
        ("dpo", "dataset_name", "data.source"),
        ("dpo", "max_prompt_length", "data.max_prompt_tokens"),
        ("preference", "eval_steps", "training.evaluate_every"),
        ("data", "model_name_or_path", "model"),
        ("data", "val_size", "validation_fraction"),
    ],
)
def test_a_verb_takes_the_setting_that_it_has(verb, word, setting):
    found = meaning(word, KEYS[verb])
    assert found is not None
    assert found.setting == setting


@pytest.mark.parametrize("verb", VERBS)
def test_every_word_s_setting_is_one_of_the_verb(verb):
    """So that nobody is told to write what is refused."""
    for word in words._targets():
        found = meaning(word, KEYS[verb])
        assert found is None or found.reason or found.setting in KEYS[verb]


def test_every_setting_of_the_table_exists():
    assert {target.partition("=")[0] for target in read_yaml(TABLE)["settings"]} <= ALL


def test_a_word_stands_once_for_one_verb():
    """Two settings of one verb behind one word would leave the second unreachable."""
    several = {word: targets for word, targets in words._targets().items() if len(targets) > 1}
    for word, targets in several.items():
        for verb, keys in KEYS.items():
            own = [target for target in targets if target.partition("=")[0] in keys]
            assert len(own) <= 1, (verb, word, own)


def test_what_the_reasons_name_exists():
    rules = (wrong_commands, wrong_names, wrong_options)
    texts = [Text("words.yaml", entry["say"]) for entry in read_yaml(TABLE)["reasons"]]
    assert [wrong for text in texts for rule in rules for wrong in rule(text)] == []


def test_reasons_are_one_sentence_with_a_next_step():
    for entry in read_yaml(TABLE)["reasons"]:
        assert not entry["say"].endswith("."), entry["say"]
        assert re.search(
            r"[;:,] ?(set|leave|read|add|upload|use|start|try|`offbeat|which)|\bto the command", entry["say"]
        )


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("lr", "1e-5", "write learner.optimizer.lr=1e-5"),
        ("--lr", None, "write learner.optimizer.lr=VALUE"),
        ("--updates", "7", "write updates=7"),
        ("--sampling.max-new-tokens", "7", "write sampling.max_new_tokens=7"),
        ("dataset_name", "my data.jsonl", "write 'prompts.source=my data.jsonl'"),
        ("dataset_name", "x" * 100, "write prompts.source=VALUE"),
        ("dataset_name", {"a": 1}, "write prompts.source=VALUE"),
        ("xyzzy", 1, None),
    ],
)
def test_an_answer_is_ready_to_type(key, value, wanted):
    assert answer(key, value, list(settings(VERBS["train"].model))) == wanted
