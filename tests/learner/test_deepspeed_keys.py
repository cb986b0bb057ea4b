"""The list of DeepSpeed's keys against DeepSpeed's own, and what is said of those that may not be set."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launch.settings.fields import settings
from launch.settings.run import RunConfig
from learner.config import LearnerConfig
from learner.deepspeed_keys import ALLOWED, ALLOWED_BELOW, OFFLOAD, REFUSED, ZERO, checked_deepspeed


def fields_of(config: Any) -> set[str]:
    """A section's keys as written: by their aliases, without those that DeepSpeed has replaced."""
    return {info.alias or name for name, info in config.model_fields.items()}


def test_every_key_of_zero_is_allowed_or_refused_and_no_other_is_named() -> None:
    """A new DeepSpeed may bring a key that changes what is trained: somebody decides on it first."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    for section, config in ((ZERO, DeepSpeedZeroConfig), (OFFLOAD, DeepSpeedZeroOffloadOptimizerConfig)):
        below = {name.removeprefix(f"{section}.") for name in REFUSED if name.startswith(f"{section}.")}
        refused = {name for name in below if "." not in name}
        assert ALLOWED_BELOW[section] & refused == set()
        known = fields_of(config) | ({"gather_16bit_weights_on_model_save"} if section == ZERO else set())
        assert ALLOWED_BELOW[section] | refused == known


def test_every_key_at_the_top_is_one_that_deepspeed_reads() -> None:
    """It ignores an unknown one without a word."""
    spec = find_spec("deepspeed")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    folders = ("autotuning", "comm", "datastates", "monitor", "profiling", "runtime", "utils")
    source = "\n".join(path.read_text() for folder in folders for path in (root / folder).rglob("*.py"))
    top = set(ALLOWED) | {name for name in REFUSED if "." not in name}
    assert set(ALLOWED) & set(REFUSED) == set()
    assert {name for name in top if not re.search(rf"[\"']{name}[\"']", source)} == set()


def test_every_setting_to_use_instead_exists() -> None:
    known = {setting.key for setting in settings(RunConfig)} | {setting.section for setting in settings(RunConfig)}
    named = {name for reason in REFUSED.values() for name in re.findall(r"\blearner\.[a-z_.]+[a-z_]", reason)}
    assert {"learner.zero_stage", "learner.dtype", "learner.optimizer.max_grad_norm"} <= named <= known


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage cannot be set here: it follows learner.zero_stage",
        ),
        ({"bf16": {"enabled": True}}, "bf16 cannot be set here: it follows learner.dtype; set that"),
        ({"gradient_clipping": 1.0}, "it follows learner.optimizer.max_grad_norm"),
        ({"optimizer": {"params": {"lr": 1}}}, "it follows learner.optimizer; set that"),
        ({"train_batch_size": 8}, "it follows learner.micro_batch_tokens"),
        ({"communication_data_type": "bf16"}, "it follows learner.reduce_dtype; set that"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device",
        ),
        ({"zero_optimisation": {}}, "zero_optimisation is not one of DeepSpeed's keys; nearest: zero_optimization"),
        ({"zero_optimization": {"overlap_com": True}}, "of zero_optimization; nearest: overlap_comm"),
        ({"zero_optimization": None}, "zero_optimization is None; allowed is a section"),
        ({"zero_optimization": {"offload_optimizer": None}}, "zero_optimization.offload_optimizer is None"),
        ({"tensorboard": {"api_key": "aB3dE5fG7hJ9kL1mN2pQ"}}, "must hold no secret, and tensorboard.api_key"),
    ],
)
def test_a_key_that_may_not_be_set_is_refused_with_the_reason(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        checked_deepspeed(given)


def test_other_keys_are_passed_on_as_they_are() -> None:
    given = {"zero_optimization": {"overlap_comm": True, "offload_param": {"device": "cpu"}}, "steps_per_print": 10}
    assert checked_deepspeed(given) == given
    assert checked_deepspeed(None) == {}


def test_settings_of_an_offloaded_optimizer_need_one() -> None:
    given = {"zero_optimization": {"offload_optimizer": {"pin_memory": False}}}
    with pytest.raises(ValueError, match="has no effect with offload_optimizer false; set that to true"):
        LearnerConfig(deepspeed=given)
    assert LearnerConfig(deepspeed=given, offload_optimizer=True).deepspeed == given
