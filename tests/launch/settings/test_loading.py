"""Loading: every mistake at once, each with its key, what was given and what is allowed; and a round trip."""

from pathlib import Path

import pytest
from pydantic import Field

from actors.errors import UsageError
from actors.settings import Settings
from launch.settings.loading import config_file, dump_config, load_config, preset_names, with_recorded_defaults
from launch.settings.verbs import Verb

PRESETS = (
    "chat, cluster-2node, embedded, embedded-bradley-terry, embedded-nash-md, gpu-1, gpu-1-80gb, gpu-1-lora, gsm8k, "
    "node-8gpu"
)
WORLD = "model.path=world"


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def mistakes(path, *overrides):
    """The lines of the error, without heading and footer."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    heading, *lines, footer = str(caught.value).splitlines()
    assert heading.startswith("configuration ")
    assert footer == "`offbeat train --help` lists every setting"
    return [line.removeprefix("  ") for line in lines]


def test_a_file_sets_what_it_names_and_leaves_the_rest(write):
    config = load_config(write("model: {path: /m}\nreplay:\n  max_staleness: 3\n"))
    assert (config.model.path, config.replay.max_staleness, config.replay.prompts_per_update) == ("/m", 3, 32)


def test_overrides_win_over_the_file_and_the_last_one_wins(write):
    path = write("model: {path: /m}\nupdates: 7\nreplay: {max_staleness: 3, order: ready}\n")
    config = load_config(path, ["updates=8", "replay.max_staleness=4", "replay.max_staleness=5"])
    assert (config.updates, config.replay.max_staleness, config.replay.order) == (8, 5, "ready")


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("learner.optimizer.lr=1e-6", lambda config: config.learner.optimizer.lr, 1e-6),  # YAML 1.1 calls it a text
        ("sampling.stop_token_ids=[5, 7]", lambda config: config.sampling.stop_token_ids, (5, 7)),
        ("learner.optimizer.betas=[0.8, 0.9]", lambda config: config.learner.optimizer.betas, (0.8, 0.9)),
        ("judging.missing_eos_score=null", lambda config: config.judging.missing_eos_score, None),
        ("prompts.shuffle=false", lambda config: config.prompts.shuffle, False),
        ("name=2026", lambda config: config.name, "2026"),  # a text that looks like a number,
        ("prompts.split=on", lambda config: config.prompts.split, "on"),  # a boolean,
        ("name=2026-11-21", lambda config: config.name, "2026-11-21"),  # a date,
        ("prompts.source=1:30", lambda config: config.prompts.source, "1:30"),  # base-60 digits
        ("prompts.source=a=b", lambda config: config.prompts.source, "a=b"),
        ("output=null", lambda config: config.output, None),
        ("judging.judge={kind: function, path: 'a.b:c'}", lambda config: config.judging.judge.path, "a.b:c"),
        ("learner.environment.A=10:20", lambda config: config.learner.environment, {"A": "10:20"}),
        ("learner.environment.A=on", lambda config: config.learner.environment, {"A": "on"}),
        ("learner.environment={A: b}", lambda config: config.learner.environment, {"A": "b"}),
        ("learner.resources.rack=1", lambda config: config.learner.resources, {"rack": 1.0}),
        ("generators.engine.block_size=16", lambda config: config.generators.engine, {"block_size": 16}),
        (
            "learner.deepspeed.zero_optimization.overlap_comm=true",
            lambda config: config.learner.deepspeed,
            {"zero_optimization": {"overlap_comm": True}},
        ),
        ("prompts.columns=[level, tests]", lambda config: config.prompts.columns, ("level", "tests")),
        ("prompts.answer_field=[a, b]", lambda config: config.prompts.answer_field, ("a", "b")),
        ("prompts.answer_field=2026", lambda config: config.prompts.answer_field, "2026"),
    ],
)
def test_values_of_overrides_are_yaml_and_text_stays_text(override, read, expected):
    assert read(load_config(None, [WORLD, override])) == expected


def test_a_section_with_all_its_lines_commented_out_stands_for_its_defaults(write):
    config = load_config(write("model: {path: world}\nreplay:\n  # max_staleness: 2\nlearner:\n  loss:\n"))
    assert config.replay.max_staleness == 1
    assert config.learner.loss.kind == "dpo"


def test_what_is_passed_on_is_read_from_a_file_and_written_back_as_it_is(write):
    config = load_config(
        write(
            "model: {path: world}\n"
            "generators:\n  environment: {A: '1'}\n  engine:\n    # block_size: 16\n  resources:\n"
            "learner: {deepspeed: {comms_logger: {enabled: true}}, resources: {rack: 0.5}}\n"
            "cluster: {address: 'head:6379', runtime_env: {pip: [a]}}\n"
        )
    )
    assert (config.generators.environment, config.generators.engine, config.generators.resources) == (
        {"A": "1"},
        {},
        {},
    )
    assert load_config(write(dump_config(config))) == config


def test_mistakes_in_what_is_passed_on_are_told_with_the_section_and_the_setting_to_use(write):
    path = write(
        "model: {path: world}\nlearner:\n  environment: {NCCL_IB_DISABLE: 1}\n  deepspeed: {fp16: {enabled: true}}\n"
        "  resources: {rack: -1}\njudging: {environment: {HF_TOKEN: hf_aB3dE5fG7hJ9kL1mN2pQ}}\n"
        "cluster: {runtime_env: {env_vars: {A: b}}}\n"
    )
    found = mistakes(path, "generators.engine.seed=3", "generators.environment.OMP_NUM_THREADS=4")
    assert sorted(found) == [
        "cluster.runtime_env: env_vars cannot be set here: variables belong to a role; set generators.environment, "
        "learner.environment, judging.environment or reference.environment",
        "generators.engine: seed cannot be set here: Offbeat sets it; set seed",
        "generators.environment: OMP_NUM_THREADS cannot be set here: it follows generators.cpus; set that",
        "judging.environment: must hold no secret, and HF_TOKEN looks like one: a configuration is saved with its run; "
        "export it where Ray's nodes are started, or the run if it starts Ray, and workers have it",
        "learner.deepspeed: fp16 cannot be set here: it follows learner.dtype; set that",
        "learner.environment: NCCL_IB_DISABLE is 1, which YAML reads as no text; put the value in quotes",
        "learner.resources: rack is -1; allowed is an amount of 0.0001 or more, the smallest that Ray can reserve; "
        "correct it",
    ]


def test_all_mistakes_of_file_and_overrides_are_reported_at_once(write):
    path = write(
        "updates: true\nname: 2026\nlerner: {}\nsampling: 5\n"
        "replay: {max_staleness: -1, max_stalenes: 2}\n"
        "learner: {dtype: float16, optimizer: {betas: [0.9, x], lr: .inf}}\n"
        "judging: {judge: {kind: godl}}\n"
    )
    path_help = "Hugging Face directory or hub name of the policy to start from; `world` first trains the embedded "
    path_help += "world's small policy"
    assert sorted(mistakes(path, "foo", "lr=3", "updates.x=4", "learner.zero_stage=5")) == sorted(
        [
            "foo: not an override; write KEY=VALUE, for example replay.max_staleness=2",
            "lr: no such setting; write learner.optimizer.lr=3",
            "updates.x: `updates` is true and has no settings below it",
            "learner.zero_stage: given 5; allowed: 0 | 1 | 2 | 3",
            "updates: given true; allowed: integer >= 1",
            "name: given 2026; allowed: text of letters, digits and . _ -; put it in quotes",
            "lerner: no such setting; nearest: learner",
            "sampling: given 5; allowed: a section of `key: value` lines",
            "replay.max_staleness: given -1; allowed: integer >= 0 and <= 1000",
            "replay.max_stalenes: no such setting; nearest: replay.max_staleness",
            "learner.dtype: given 'float16'; allowed: float32 | bfloat16; nearest: bfloat16",
            "learner.optimizer.betas: given [0.9, x]; allowed: list of 2 numbers",
            "learner.optimizer.lr: given inf; allowed: number > 0, finite",
            "judging.judge.kind: given 'godl'; allowed: gold | bradley_terry | reward_model | preference_model | "
            "verifier | code | instructions | function | endpoint | served | ensemble; "
            "nearest: gold",
            f"model.path: missing; pass model.path=VALUE ({path_help})",
        ]
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("replay.max_stalness=1", "replay.max_stalness: no such setting; nearest: replay.max_staleness"),
        ("max_staleness=1", "max_staleness: no such setting; write replay.max_staleness=1"),
        ("learner.optimiser.lr=1", "learner.optimiser.lr: no such setting; write learner.optimizer.lr=1"),
        ("learner.optimiser.x=1", "learner.optimiser: no such setting; nearest: learner.optimizer"),
        ("beta=1", "beta: no such setting; write learner.loss.beta=1"),
        ("loss.kind=grpo", "loss.kind: no such setting; write learner.loss.kind=grpo"),
        ("sampling.top_p=.9", "sampling.top_p: no such setting; truncated sampling would make"),
        ("wandb.project=x", "wandb.project: no such setting; write tracking.wandb.project=x"),
        ("model=X", "model: given 'X'; allowed: a section of `key: value` lines; write model.path=X"),
        ("learner.max_new_token=1", "learner.max_new_token: no such setting; nearest: sampling.max_new_tokens"),
        ("xyzzy=1", "xyzzy: no such setting"),
        ("replay.max_staleness=", "replay.max_staleness: missing; pass replay.max_staleness=VALUE (policy versions; "),
        ("replay.order=[", "replay.order: given '['; allowed: lease | ready"),
        ("updates=[", "updates: given [, which is not valid YAML (expected the node content, "),
        ("=3", "=3: not an override; write KEY=VALUE"),
        ("replay..order=ready", "replay..order=ready: not an override; write KEY=VALUE"),
        ("learner.optimizer.lr=fast", "learner.optimizer.lr: given 'fast'; allowed: number > 0"),
        ("updates=1.5", "updates: given 1.5; allowed: integer >= 1"),
        ("generators.canary_tolerance=0", "generators.canary_tolerance: given 0; allowed: number > 0 or null"),
        ("replay.max_reuse=2", "replay: max_reuse 2 cannot be met with order 'lease'"),
        ("sampling.max_new_tokens=600", "prompts.max_prompt_tokens 512 + sampling.max_new_tokens 600 = 1112 exceed"),
    ],
)
def test_a_wrong_override_is_one_line(override, line):
    (found,) = mistakes(None, WORLD, override)
    assert found.startswith(line)


def test_a_judge_without_its_kind_or_what_its_kind_needs_says_what_to_pass():
    assert mistakes(None, WORLD, "judging.judge.path=/rm") == [
        "judging.judge.kind: missing; pass judging.judge.kind=VALUE (which judge)"
    ]
    assert mistakes(None, WORLD, "judging.judge.kind=reward_model") == [
        "judging.judge.path: missing; pass judging.judge.path=VALUE (directory or hub name of the model)"
    ]


def test_a_setting_of_another_judge_says_whose_it_is():
    (line,) = mistakes(None, WORLD, "judging.judge.kind=verifier", "judging.judge.path=/rm")
    assert line == (
        "judging.judge.path: not a setting of judging.judge of kind verifier (it belongs to reward_model, "
        "preference_model and function); remove it, or replace the whole section with 'judging.judge={kind: verifier}'"
    )


def test_the_advice_to_replace_a_section_works():
    config = load_config(None, [WORLD, "judging.judge.path=/rm", "judging.judge={kind: gold}"])
    assert config.judging.judge.kind == "gold"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n b: 2\n", "line 2, column 3: not valid YAML: mapping values are not allowed here"),
        ("updates: 1\nupdates: 2\n", "line 2, column 1: not valid YAML: `updates` is written twice in one section"),
        ("updates: [1\n", "line 2, column 1: not valid YAML: "),
        (
            "updates: !!python/object:os.system {}\n",
            "line 1, column 10: not valid YAML: could not determine a constructor",
        ),
        ("{{a: 1}: 2}", "line 1, column 2: not valid YAML: found unhashable key"),
        ("[a, b]", "holds [a, b]; allowed: sections of `key: value` lines"),
        (
            "a: \x07",
            "line 1, column 4: not valid YAML: the special character U+0007 is not allowed; remove that character",
        ),
    ],
)
def test_a_broken_file_says_where(write, text, line):
    (found,) = mistakes(write(text))
    assert found.startswith(line)


def test_a_broken_file_hides_no_mistake_in_the_overrides_and_invents_none(write):
    assert len(mistakes(write("[a, b]"), "nonsense", "updates=5")) == 2


def test_keys_that_are_no_names_are_refused(write):
    assert mistakes(write("1: 2\nmodel: {path: world}\n")) == [
        "1: given as a key; allowed: names of settings; put quotes around it, or remove it"
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "embeded",
            f"no such file, and no such preset (presets: {PRESETS}); looked in {Path.cwd()}; nearest preset: embedded",
        ),
        (
            "missing.yaml",
            f"no such file, and no such preset (presets: {PRESETS}); looked in {Path.cwd()}; "
            "`offbeat init FILE.yaml` writes one",
        ),
        ("updates=5", "`updates=5` looks like an override; the configuration file or preset comes first"),
    ],
)
def test_a_missing_file_names_the_presets(path, line):
    assert mistakes(path) == [line]


def test_unreadable_files_say_why(tmp_path):
    assert mistakes(tmp_path) == ["is a directory; give a YAML file, or the name of a preset"]
    (tmp_path / "image.yaml").write_bytes(b"a: \xff\xfe")
    assert mistakes(tmp_path / "image.yaml") == [
        "not a text file: byte 3 is not UTF-8; save it as UTF-8, or give a YAML file"
    ]


def test_what_is_dumped_loads_to_the_same_configuration(write):
    overrides = [
        "model.path=/m",
        "name=2026",
        "prompts.split=on",
        "updates=17",
        "learner.optimizer.lr=3e-7",
        "sampling.stop_token_ids=[5, 7]",
        "judging.judge={kind: function, path: 'a.b:c'}",
        "judging.missing_eos_score=null",
        "replay.order=ready",
    ]
    config = load_config(None, overrides)
    assert load_config(write(dump_config(config))) == config


def test_a_preset_s_name_stands_for_its_file():
    assert ", ".join(preset_names()) == PRESETS
    assert load_config("embedded") == load_config(config_file("embedded"))
    assert config_file("other.yaml").name == "other.yaml"


class Oven(Settings):
    """A configuration of another command."""

    degrees: int = Field(ge=0, description="degrees Celsius")
    note: str = Field(default="", description="what the cook wrote")


@pytest.fixture
def bake(tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "bread.yaml").write_text("degrees: 230\n")
    return Verb("bake", f"{__name__}:Oven", "", "degrees=200", tmp_path / "presets")


def test_another_verb_has_settings_and_presets_of_its_own(bake, write):
    config = load_config("bread", ["note=12"], bake)
    assert config == Oven(degrees=230, note="12")
    assert load_config(write(dump_config(config)), [], bake) == config
    assert preset_names(bake) == ["bread"]
    assert config_file("embedded", bake).name == "embedded"


def test_mistakes_of_another_verb_speak_of_its_own_settings(bake):
    with pytest.raises(UsageError) as caught:
        load_config("bred", ["updates=3", "degres=3", "hot"], bake)
    assert str(caught.value).splitlines() == [
        "configuration bred: 2 mistakes",
        f"  no such file, and no such preset (presets: bread); looked in {Path.cwd()}; nearest preset: bread",
        "  hot: not an override; write KEY=VALUE, for example degrees=200",
        "`offbeat bake --help` lists every setting",
    ]
    with pytest.raises(UsageError) as caught:
        load_config(None, ["degrees=-1", "replay.max_staleness=3", "degres=3"], bake)
    assert str(caught.value).splitlines()[1:-1] == [
        "  degrees: given -1; allowed: integer >= 0",
        "  replay: no such setting",
        "  degres: no such setting; nearest: degrees",
    ]


@pytest.mark.parametrize("betas", ["[]", "[0.9]", "[0.9, 0.8, 0.7]"])
def test_a_list_of_the_wrong_length_is_shown_with_what_is_allowed(betas):
    """One that was too short was counted as a mistake and not named."""
    said = f"learner.optimizer.betas: given {betas}; allowed: list of 2 numbers"
    assert mistakes(None, WORLD, f"learner.optimizer.betas={betas}") == [said]


@pytest.mark.parametrize(
    ("recorded", "given", "used"),
    [
        ("judging: {missing_eos_score: -1.0}", [], -1.0),
        ("judging: {missing_eos_score: null}", [], None),
        ("judging: {missing_eos_score: -1.0}", ["judging.missing_eos_score=below_finished"], "below_finished"),
        ("judging: {count: 1}", [], "below_finished"),
        ("updates: 5", [], "below_finished"),
    ],
)
def test_a_resumed_run_keeps_the_score_of_missing_ends_that_was_its_default(tmp_path, recorded, given, used):
    """The default was -1."""
    (tmp_path / "config.yaml").write_text(recorded + "\n")
    (tmp_path / "mine.yaml").write_text(f"model: {{path: unused}}\noutput: {tmp_path}\n")
    assert with_recorded_defaults(load_config(tmp_path / "mine.yaml", given)).judging.missing_eos_score == used


@pytest.mark.parametrize(
    ("recorded", "given", "used"),
    [
        ("learner: {ranks: 1}", [], False),
        ("learner: {share_prompts: true}", [], True),
        ("learner: {share_prompts: false}", [], False),
        ("learner: {ranks: 1}", ["learner.share_prompts=true"], True),
        ("updates: 5", [], True),
    ],
)
def test_a_run_that_began_before_prompts_were_shared_goes_on_and_is_replayed_without(tmp_path, recorded, given, used):
    """Sharing changes rounding, and both are to the bit."""
    (tmp_path / "config.yaml").write_text(f"{recorded}\nmodel: {{path: unused}}\noutput: {tmp_path}\n")
    (tmp_path / "mine.yaml").write_text(f"model: {{path: unused}}\noutput: {tmp_path}\n")
    assert with_recorded_defaults(load_config(tmp_path / "mine.yaml", given)).learner.share_prompts == used
    (tmp_path / "summary.json").write_text("{}")
    assert load_config(tmp_path / "config.yaml", given).learner.share_prompts == used


def test_a_mistake_on_the_command_line_does_not_blame_the_file_that_a_run_wrote(write, tmp_path):
    (tmp_path / ".lock").touch()
    recorded = write("updates: two\n", "config.yaml")
    with pytest.raises(UsageError, match="a run wrote this file: restore it"):
        load_config(recorded, [WORLD])
    recorded.write_text("updates: 2\n")
    with pytest.raises(UsageError) as caught:
        load_config(recorded, [WORLD, "foo=1"])
    assert "restore" not in str(caught.value)
