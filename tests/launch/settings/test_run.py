"""Configuration models: frozen, every setting described with its bounds, contradictions refused with both values."""

import pytest
from pydantic import ValidationError

from actors.errors import UsageError
from actors.judges.config import JudgingConfig
from launch.settings.fields import section_models, settings
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from learner.losses.config import GameLossConfig, RewardLossConfig
from tests.settings import nested

ALL = list(settings(RunConfig))
JUDGES = (
    "gold",
    "bradley_terry",
    "reward_model",
    "preference_model",
    "verifier",
    "code",
    "instructions",
    "function",
    "endpoint",
    "served",
    "ensemble",
)


def test_every_setting_and_section_is_described():
    assert ALL
    assert [
        entry.key for entry in ALL if not entry.description or entry.description.endswith(".") or not entry.title
    ] == []


def test_every_number_has_a_bound():
    numbers = [entry for entry in ALL if entry.types & {int, float} and "|" not in entry.allowed]
    free = [entry.key for entry in numbers if not any(word in entry.allowed for word in ("<", ">", "list"))]
    assert set(free) <= {"judging.missing_eos_score"}


def test_a_setting_is_described_with_type_bounds_and_default():
    described = {setting.key: (setting.allowed, setting.default) for setting in ALL if not setting.only_for}
    assert described["replay.max_staleness"] == ("integer >= 0 and <= 1000", "1")
    assert described["generators.gpus"] == ("number >= 0.0001 and <= 1", "1.0")
    assert described["generators.canary_tolerance"] == ("number > 0 or null", "null")
    assert described["learner.zero_stage"] == ("0 | 1 | 2 | 3", "2")
    assert described["prompts.shuffle"] == ("true | false", "true")
    assert described["sampling.stop_token_ids"] == ("list of integers", "[]")
    assert described["learner.optimizer.betas"] == ("list of 2 numbers", "[0.9, 0.95]")
    assert described["model.path"] == ("text", "required")
    assert described["judging.judge.kind"] == (" | ".join(JUDGES), "gold")


def test_settings_of_one_kind_of_judge_name_it():
    owners = [kind for setting in ALL if setting.key == "judging.judge.path" for kind in setting.only_for]
    assert owners == ["reward_model", "preference_model", "function"]


def test_a_configuration_cannot_be_changed_behind_the_run_s_back():
    config = load_config("embedded")
    with pytest.raises(ValidationError, match="frozen"):
        config.replay.max_staleness = 5


def test_a_prompt_and_its_completion_must_fit_the_engine():
    with pytest.raises(ValidationError, match=r"512 \+ sampling\.max_new_tokens 512 = 1024 exceed .* 1023"):
        RunConfig.model_validate(
            {"model": {"path": "m"}, "sampling": {"max_new_tokens": 512}, "generators": {"max_model_len": 1023}}
        )


def test_bfloat16_without_master_weights_is_refused():
    with pytest.raises(ValidationError, match="zero_stage 0 with dtype bfloat16"):
        RunConfig.model_validate({"model": {"path": "m"}, "learner": {"zero_stage": 0}})


@pytest.mark.parametrize("overrides", [["output=/data/x"], ["name=x", "output=/data/x"]])
def test_a_run_s_directory_is_its_output(overrides):
    assert str(load_config("embedded", overrides).directory) == "/data/x"


def test_a_run_s_directory_is_named_after_it_otherwise():
    assert str(load_config("embedded", ["name=x"]).directory) == "runs/x"


def test_the_final_model_is_one_that_was_published():
    """The win rate of a run was that of an older model than the one it left behind."""
    base = {"model": {"path": "m"}, "replay": {"updates_per_publish": 5}}
    with pytest.raises(ValidationError, match=r"updates 12 is not a multiple .* 5, .*; set updates to 10 or 15"):
        RunConfig.model_validate({**base, "updates": 12})
    with pytest.raises(ValidationError, match=r"; set updates to 5"):
        RunConfig.model_validate({**base, "updates": 3})
    assert RunConfig.model_validate({**base, "updates": 15}).updates == 15


def _game(**sections):
    """A run with a game loss, and what the sections say."""
    learner = {"loss": {"kind": "nash_pg"}, **sections.pop("learner", {})}
    return RunConfig.model_validate(nested({"model": {"path": "m"}, "learner": learner, **sections}))


def test_opponents_cannot_be_staler_than_the_completions_that_wait_for_them():
    with pytest.raises(ValidationError, match=r"opponent\.max_staleness 3 exceeds replay\.max_staleness 1"):
        _game(opponent={"max_staleness": 3})


def test_opponents_drawn_late_need_the_order_of_leases():
    with pytest.raises(ValidationError, match=r"replay\.order ready decides that late; set order to lease"):
        _game(opponent={"max_staleness": 0}, replay={"order": "ready"})


def test_recorded_reference_log_probs_are_refused_where_the_loss_needs_the_whole_distribution():
    reference = {"count": 1}
    settings = {"model": {"path": "m"}, "reference": reference, "learner": {"loss": {"kind": "nash_pg"}}}
    with pytest.raises(ValidationError, match=r"reference\.count 1 records .* set reference\.count to 0"):
        RunConfig.model_validate(settings)
    assert RunConfig.model_validate({"model": {"path": "m"}, "reference": reference}).reference.count == 1


def test_a_split_group_needs_two_players_on_each_side():
    with pytest.raises(ValidationError, match="completions_per_prompt 3 is too few to split"):
        _game(sampling={"completions_per_prompt": 3})
    assert _game(sampling={"completions_per_prompt": 3}, opponent={"kind": "mixture"})
    assert _game(sampling={"completions_per_prompt": 3}, opponent={"max_staleness": 0})
    assert RunConfig.model_validate({"model": {"path": "m"}, "sampling": {"completions_per_prompt": 3}})


def test_ipo_md_compares_two_opponents():
    with pytest.raises(ValidationError, match="completions_per_prompt is 1, and kind ipo_md compares"):
        _game(
            learner={"loss": {"kind": "ipo_md"}},
            opponent={"kind": "mixture", "completions_per_prompt": 1},
        )


def test_an_average_of_policies_is_refused_where_weights_are_in_parts():
    with pytest.raises(ValidationError, match=r"opponent\.kind ema needs unsharded weights, and zero_stage 3 shards"):
        _game(learner={"zero_stage": 3}, opponent={"kind": "ema"})


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_a_mixture_s_weight_is_a_share(beta):
    with pytest.raises(ValidationError, match=r"opponent\.beta"):
        _game(opponent={"beta": beta})


@pytest.mark.parametrize("kind", ["dpo", "ipo", "slic", "rloo"])
def test_settings_that_the_loss_does_not_have_are_refused(kind):
    """They were taken in silence, and a run was thought to play against what it never drew."""
    given = [f"learner.loss.kind={kind}", "learner.loss.opponent.kind=mixture"]
    owners = r"belongs to nash_pg, online_ipo and ipo_md"
    with pytest.raises(UsageError, match=rf"opponent: not a setting of learner\.loss of kind {kind} \(it {owners}"):
        load_config("embedded", given)
    with pytest.raises(UsageError, match=rf"loss\.correction[.\w]*: not a setting of learner\.loss of kind {kind}"):
        load_config("embedded", [f"learner.loss.kind={kind}", "learner.loss.correction.opponents=none"])


def test_a_setting_that_the_loss_does_not_have_is_one_mistake():
    """`replay.max_staleness` is 2: this bound would be refused for the losses that have it."""
    with pytest.raises(UsageError, match=r": 1 mistake\n.*loss\.opponent: not a setting of learner\.loss of kind dpo"):
        load_config("embedded", ["learner.loss.opponent.max_staleness=7"])


def test_the_correction_of_players_belongs_to_all_losses_on_games_and_to_none_on_pairs():
    correction = {"baseline": "constant", "kl": "reward_to_go", "players": "token", "beyond_cap": "mask"}
    for kind in ("nash_pg", "rloo"):
        config = _game(learner={"loss": {"kind": kind, "correction": correction}})
        assert config.learner.loss.correction.players == "token"
    with pytest.raises(ValidationError, match=r"loss\.dpo\.correction\s+Extra inputs are not permitted"):
        _game(learner={"loss": {"kind": "dpo", "correction": correction}})


def test_another_kind_on_the_command_line_leaves_out_what_the_file_says_of_the_kind_before():
    """The preset sets beta, which losses on games do not have; tau stays where both have it."""
    assert load_config("embedded", ["learner.loss.kind=nash_pg"]).learner.loss == GameLossConfig()
    changed = load_config("embedded-nash-md", ["learner.loss.kind=rloo", "learner.loss.correction.players=token"])
    assert changed.learner.loss == RewardLossConfig(tau=0.05, correction={"players": "token"})
    mistakes = r"learner\.loss\.beta: not a setting of learner\.loss of kind nash_pg"
    with pytest.raises(UsageError, match=mistakes):
        load_config("embedded", ["learner.loss.beta=0.2", "learner.loss.kind=nash_pg"])


@pytest.mark.parametrize(
    ("correction", "named"),
    [
        ({"opponent_cap": 1}, "opponent_cap"),
        ({"players": "token", "player_cap": 1}, "player_cap"),
        ({"players": "sequence", "player_cap": 1, "opponent_cap": 1}, "player_cap and opponent_cap"),
    ],
)
def test_a_mask_at_a_cap_of_1_which_leaves_nothing_is_refused(correction, named):
    with pytest.raises(ValidationError, match=f"Value error, {named} 1 with beyond_cap mask .* raise the cap above 1"):
        _game(learner={"loss": {"kind": "nash_pg"}, "correction": {**correction, "beyond_cap": "mask"}})


@pytest.mark.parametrize(
    "correction",
    [
        {"opponent_cap": 1},
        {"opponent_cap": 1.01, "beyond_cap": "mask"},
        {"player_cap": 1, "beyond_cap": "mask"},
        {"opponents": "none", "opponent_cap": 1, "beyond_cap": "mask"},
    ],
)
def test_a_cap_of_1_may_truncate_and_is_not_read_without_weights(correction):
    assert _game(learner={"loss": {"kind": "nash_pg"}, "correction": correction}).learner.loss.kind == "nash_pg"


@pytest.mark.parametrize("kind", ["dpo", "rloo"])
def test_defaults_of_settings_that_the_loss_does_not_read_may_be_given(kind):
    """A dumped configuration gives every one of them."""
    config = _game(learner={"loss": {"kind": kind}})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("kind", ["dpo", "rloo"])
def test_losses_without_an_opponent_draw_none(kind):
    assert _game(learner={"loss": {"kind": kind}}).opponent is None
    assert _game(opponent={"kind": "mixture"}).opponent.engine_beta == 0.125


@pytest.mark.parametrize(
    ("kind", "sampled", "engine_beta", "target_beta"),
    [
        ("weighted", False, None, 0.25),
        ("self", False, None, 0.0),
        ("mixture", True, 0.25, 0.25),
        ("reference", True, 1.0, 1.0),
        ("ema", True, 1.0, 1.0),
    ],
)
def test_an_opponent_is_a_mixture_drawn_or_aimed_at(kind, sampled, engine_beta, target_beta):
    opponent = _game(opponent={"kind": kind, "beta": 0.25}).opponent
    assert (opponent.sampled, opponent.engine_beta, opponent.target_beta) == (sampled, engine_beta, target_beta)
    assert opponent.model_copy(update={"max_staleness": 0}).sampled


def test_a_batch_behind_http_must_have_time_for_one_request_and_its_lease_for_the_batch():
    judge = {"kind": "served", "url": "http://h", "model": "m"}
    with pytest.raises(ValidationError, match="timeout_seconds 60 is below the 180 s"):
        RunConfig.model_validate({"model": {"path": "m"}, "judging": {"judge": judge, "timeout_seconds": 60}})
    with pytest.raises(ValidationError, match=r"and leases expire after replay\.lease_seconds 600"):
        RunConfig.model_validate({"model": {"path": "m"}, "judging": {"judge": judge, "timeout_seconds": 200}})
    RunConfig.model_validate({"model": {"path": "m"}, "judging": {"judge": judge, "timeout_seconds": 180}})


REQUIRED = {
    "path": "p.m:f",
    "url": "http://127.0.0.1:8000",
    "model": "m",
    "members": [{"judge": {"kind": "gold"}}, {"judge": {"kind": "served", "url": "http://h", "model": "m"}}],
}
"""A value of each setting of a judge that has no default."""


@pytest.mark.parametrize("kind", JUDGES)
def test_the_defaults_of_every_kind_of_judge_fit_each_other(kind):
    """The default time of a batch, 60 s, was below the 180 s of one request of the kind `endpoint`."""
    model = section_models(JudgingConfig.model_fields["judge"])[kind]
    given = {name: REQUIRED[name] for name, info in model.model_fields.items() if info.is_required()}
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "judging": {"judge": given | {"kind": kind}},
            "prompts": {"source": "p.jsonl", "answer_field": "answer"},
        }
    )
    assert config.judging.in_time(config.sampling.completions_per_prompt)
    assert config.judging.timeout_seconds == (180.0 if kind in ("endpoint", "served", "ensemble") else 60.0)


def test_a_mapping_is_described_and_shown_as_one_writes_it():
    (setting,) = [setting for setting in ALL if setting.key == "judging.judge.extra_body"]
    assert (setting.allowed, setting.default) == ("mapping", "{}")


def test_a_fixed_schedule_names_everything_that_it_cannot_be_had_with():
    with pytest.raises(ValidationError) as mistake:
        _game(
            deterministic=True,
            generators={"count": 2, "on_update": "keep", "async_scheduling": True},
            replay={"updates_per_publish": 2},
            opponent={"max_staleness": 1},
        )
    for text in (
        "generators.count is 2 and must be 1",
        "updates_per_publish is 2 and must be 1",
        "generators.on_update is 'keep' and must be 'recompute'",
        "generators.async_scheduling is True and must be False",
        "is 1 and must be None",
    ):
        assert text in str(mistake.value)
    with pytest.raises(ValidationError, match=r"replay\.order is 'ready' and must be 'lease'"):
        _game(deterministic=True, replay={"order": "ready"})
    assert _game(deterministic=True).deterministic


def test_keys_and_values_are_not_kept_where_every_token_is_held_to_one_policy():
    with pytest.raises(ValidationError, match=r"on_update keep mixes two versions.*; set on_update to recompute"):
        _game(generators={"on_update": "keep"}, replay={"max_staleness": 0})
    assert _game(generators={"on_update": "keep"}, replay={"max_staleness": 1}).generators.on_update == "keep"


def test_no_more_generators_are_required_than_there_are():
    with pytest.raises(ValidationError, match="min_count 3 exceeds count 2"):
        _game(generators={"count": 2, "min_count": 3})


@pytest.mark.parametrize(
    ("replay", "given", "horizon"),
    [
        ({"max_staleness": 0}, None, 8),
        ({"max_staleness": 16}, None, 34),
        ({"max_staleness": 4, "updates_per_publish": 5}, None, 50),
        ({"max_staleness": 16}, 100, 100),
    ],
)
def test_an_anchor_looks_back_twice_the_largest_lag(replay, given, horizon):
    """2 (S + 1) k optimizer steps, at least 8."""
    anchor = {"weight": 0.32} | ({} if given is None else {"horizon": given})
    settings = {"model": {"path": "x"}, "replay": replay, "learner": {"anchor": anchor}}
    config = RunConfig.model_validate(settings)
    assert (config.anchor.weight, config.anchor.horizon) == (0.32, horizon)


@pytest.mark.parametrize(
    ("loss", "bound", "weight", "expected"),
    [
        ("nash_pg", 1, None, 0.32),
        ("online_ipo", 16, None, 0.32),
        ("nash_pg", 0, None, None),
        ("nash_pg", 1, 0.0, None),
        ("nash_pg", 0, 0.1, 0.1),
        ("dpo", 7, None, None),
        ("dpo", 8, None, 0.8),
        ("dpo", 16, None, 0.8),
        ("dpo", 16, 0.0, None),
        ("ipo", 16, None, None),
        ("rloo", 16, None, None),
    ],
)
def test_stale_opponents_and_old_samples_of_dpo_have_an_anchor_unless_it_is_turned_off(loss, bound, weight, expected):
    learner = {"loss": {"kind": loss}, "anchor": {"weight": weight}}
    config = _game(learner=learner, replay={"max_staleness": bound})
    assert (None if config.anchor is None else config.anchor.weight) == expected


@pytest.mark.parametrize(("bound", "steps", "expected"), [(0, 64, None), (1, 4, None), (1, 5, 0.8), (2, 3, 0.8)])
def test_the_age_of_samples_is_counted_in_optimizer_steps(bound, steps, expected):
    """The last step on a version's last samples: (S + 1) k - 1 steps, at least 8. On-policy runs have no anchor."""
    replay = {"max_staleness": bound, "updates_per_publish": steps}
    config = _game(learner={"loss": {"kind": "dpo"}}, replay=replay, updates=steps)
    assert (None if config.anchor is None else config.anchor.weight) == expected


def test_an_anchor_needs_a_loss_that_pulls():
    with pytest.raises(ValueError, match=r"anchor\.weight 0\.3 with loss\.kind best_of_n.*set anchor\.weight to 0"):
        RunConfig.model_validate(
            {"model": {"path": "x"}, "learner": {"loss": {"kind": "best_of_n"}, "anchor": {"weight": 0.3}}}
        )
