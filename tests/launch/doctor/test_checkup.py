"""`offbeat doctor` on real files and on this machine; what a check decides is tested with the checks."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch.cli import main
from launch.cluster import loopback
from launch.doctor import checkup as doctor
from launch.doctor import machine
from launch.doctor.findings import Finding
from launch.output import run_directory as rundir
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from tests.fakes.architectures import rewrite
from tests.fakes.models import tiny_llama

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_llama(directory, seed=0)
    return directory


@pytest.fixture
def file(tmp_path: Path, model_dir: Path) -> Path:
    """A configuration with nothing wrong in it."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "w5 w6", "answer": "7"}) + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"path": str(model_dir)},
                "output": str(tmp_path / "run"),
                "prompts": {
                    "source": str(tmp_path / "prompts.jsonl"),
                    "answer_field": "answer",
                    "max_prompt_tokens": 8,
                },
                "sampling": {"max_new_tokens": 4},
                "generators": {"max_model_len": 32, "dtype": "float32", "cpus": 0.5},
                "learner": {"cpus_per_rank": 0.5},
                "publication": {"canary_tokens": 8},
                "judging": {"judge": {"kind": "verifier"}},
                "cluster": {"address": "local", "object_store_mib": 80},
            }
        )
    )
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shared memory of the test's own, so that other runs' folders do not count."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr(rundir, "SHARED_MEMORY", path)
    return path


def config_of(file: Path, *overrides: str) -> RunConfig:
    return load_config(file, list(overrides))


def examined(config: RunConfig | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code, and the JSON that was printed."""
    code = doctor.run_doctor(config, json=True)
    return code, json.loads(capsys.readouterr().out)


def named(found: dict[str, Any], name: str) -> list[tuple[str, str]]:
    return [(finding["level"], finding["text"]) for finding in found["findings"] if finding["name"] == name]


def errors(found: dict[str, Any]) -> list[str]:
    return [f"{finding['name']}: {finding['text']}" for finding in found["findings"] if finding["level"] == "error"]


def test_a_sound_run_on_this_machine_has_no_errors(file: Path, small: Path, capsys) -> None:
    code, found = examined(config_of(file), capsys)
    assert (errors(found), code, found["ok"]) == ([], 0, True)
    assert named(found, "prompts") == [("ok", f"1 in {file.parent / 'prompts.jsonl'}, 0 malformed rows skipped")]
    assert named(found, "tokenizer") == [
        ("ok", "96 tokens of the model's 96, answers end with '</s>', no chat template")
    ]
    assert "policy" in {finding["name"] for finding in found["findings"]}
    assert not (file.parent / "run").exists(), "nothing was written"
    assert not list(small.iterdir())


def test_the_embedded_world_needs_no_files(small: Path, tmp_path: Path, capsys) -> None:
    own = [f"output={tmp_path}/run", "cluster.num_cpus=8", "cluster.object_store_mib=80"]
    code, found = examined(load_config("embedded", own), capsys)
    assert (errors(found), code) == ([], 0)
    assert named(found, "prompts") == [("ok", "16 in world, 0 malformed rows skipped")]


def test_every_mistake_is_told_in_one_go(file: Path, small: Path, capsys) -> None:
    (file.parent / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "w5"}], "answer": "1"}\n')
    (file.parent / "run").write_text("a file")
    config = config_of(
        file,
        "generators.max_model_len=600",
        "generators.count=4000",
        "judging.judge={kind: ensemble, members: [{judge: {kind: reward_model, path: /no/judge}}, "
        "{judge: {kind: function, path: 'no_such_module:f'}}]}",
    )
    code, found = examined(config, capsys)
    assert code == 1
    expected = ["judge: judging.judge.path /no/judge does not exist", "placement: 4000 generators", "disk: "]
    expected += ["judge: judging.judge.path 'no_such_module:f'", "model: generators.max_model_len 600", "prompts: "]
    told = errors(found)
    for start in expected:
        assert any(line.startswith(start) for line in told), start
    (prompts,) = [line for line in told if line.startswith("prompts: ")]
    assert "chat template" in prompts


def test_malformed_rows_that_are_left_out_are_a_warning(file: Path, small: Path, capsys) -> None:
    with (file.parent / "prompts.jsonl").open("a") as rows:
        rows.write("not JSON\n")
    code, found = examined(config_of(file, "prompts.on_malformed=skip"), capsys)
    assert code == 0
    ((level, text),) = named(found, "prompts")
    assert (level, "1 malformed row skipped" in text) == ("warning", True)


def test_a_tokenizer_larger_than_the_model_is_an_error(file: Path, small: Path, tmp_path: Path, capsys) -> None:
    tiny_llama(tmp_path / "other", seed=0, vocab_size=128)
    code, found = examined(config_of(file, f"model.tokenizer={tmp_path}/other"), capsys)
    assert code == 1
    ((level, text),) = named(found, "tokenizer")
    assert level == "error"
    assert text.startswith(f"the tokenizer of {tmp_path}/other has 128 tokens and ")
    assert text.endswith(" 96")


def test_hub_names_that_are_not_cached_are_warnings_and_nothing_is_asked_of_the_hub(
    file: Path, small: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    config = config_of(file, "model.path=nobody/offbeat-policy", "prompts.source=nobody/offbeat-prompts")
    code, found = examined(config, capsys)
    assert code == 0
    assert named(found, "model") == [
        ("warning", "model.path nobody/offbeat-policy is not on this machine; it will be downloaded")
    ]
    assert named(found, "prompts")[0][0] == "warning"
    assert not named(found, "policy") + named(found, "memory"), "its size is unknown"
    assert named(found, "disk")[0][0] == "ok"


def test_without_a_model_the_prompts_are_still_looked_at(file: Path, small: Path, capsys) -> None:
    gone = ["model.path=./gone", f"prompts.source={file.parent}/gone.jsonl"]
    code, found = examined(config_of(file, *gone), capsys)
    assert code == 1
    assert {line.partition(":")[0] for line in errors(found)} == {"model", "prompts"}


def test_the_chat_preset_without_its_model_names_the_command_that_brings_it_and_needs_no_hub_for_prompts(
    small: Path, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = examined(load_config("chat", ["cluster.address=local"]), capsys)
    assert code == 1
    [finding] = [each for each in found["findings"] if each["name"] == "model"]
    assert finding["remedy"] == "`make pretrained` writes models/smollm2-135m-instruct in a checkout"
    assert named(found, "prompts") == [("ok", "instructions can be read; not tokenised without the model")]


def test_a_cluster_that_does_not_answer_is_an_error_and_this_host_is_not_measured(
    file: Path, small: Path, capsys
) -> None:
    code, found = examined(config_of(file, "cluster.address=127.0.0.1:1"), capsys)
    assert code == 1
    ((level, text),) = named(found, "cluster")
    assert (level, "127.0.0.1:1" in text) == ("error", True)
    assert not named(found, "placement")
    assert not named(found, "memory")


def test_a_cluster_is_asked_whether_it_can_place_the_run(
    file: Path, small: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.cluster import wiring

    monkeypatch.setattr(wiring, "ray_session", lambda cluster: contextlib.nullcontext())
    host = {"Alive": True, "Resources": {"CPU": 1.0}, "NodeManagerAddress": "10.0.0.1"}
    monkeypatch.setattr(wiring.ray, "nodes", lambda: [host])
    monkeypatch.setattr(wiring.ray, "cluster_resources", lambda: {"CPU": 1.0})
    code, found = examined(config_of(file, "cluster.address=10.0.0.1:6379"), capsys)
    assert (errors(found), code) == ([], 0)
    assert named(found, "cluster") == [("ok", "10.0.0.1:6379: the run can be placed")]
    assert [level for level, _ in named(found, "network")] == ["warning"]
    code, found = examined(config_of(file, "cluster.address=10.0.0.1:6379", "generators.count=2"), capsys)
    assert code == 1
    assert "needs 1.5 CPUs" in named(found, "cluster")[0][1]


def test_a_run_of_its_own_ray_reaches_other_machines_only_if_ray_is_told_to(
    file: Path, small: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(loopback.SWITCH, raising=False)
    assert named(examined(config_of(file), capsys)[1], "network")[0][0] == "ok"
    monkeypatch.setenv(loopback.SWITCH, "1")
    assert named(examined(config_of(file), capsys)[1], "network")[0][0] == "warning"


def test_without_a_configuration_only_the_machine_is_looked_at(small: Path, capsys) -> None:
    assert doctor.run_doctor(None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ok", "machine"]
    assert lines[0].endswith("Python " + ".".join(map(str, sys.version_info[:3])))
    assert not any("placement" in line for line in lines)


@pytest.mark.parametrize(
    ("cuda", "failure", "level", "text"),
    [
        ("13.0", None, "ok", "works with the driver"),
        ("13.0", RuntimeError("The NVIDIA driver on your system is too old\nmore"), "error", "is too old"),
        (None, AssertionError("Torch not compiled with CUDA enabled"), "warning", "not compiled with CUDA enabled"),
    ],
)
def test_torch_says_whether_it_can_use_the_gpus(
    small: Path, capsys, monkeypatch: pytest.MonkeyPatch, cuda: str | None, failure: Exception | None, level, text
) -> None:
    def init() -> None:
        if failure is not None:
            raise failure

    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu(0, "H100", 1 << 36, 0, "580")])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    code, found = examined(None, capsys)
    ((found_level, found_text),) = named(found, "cuda")
    assert (code, found_level, found_text.endswith(text)) == (int(level == "error"), level, True)


def test_the_run_s_port_is_reported_only_if_it_is_set(file: Path, small: Path, capsys) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        code, found = examined(config_of(file, f"learner.port={port}"), capsys)
        assert (code, named(found, "learner.port")) == (1, [("error", f"{port} is in use")])
    code, found = examined(config_of(file, f"learner.port={port}"), capsys)
    assert (code, named(found, "learner.port")) == (0, [("ok", f"{port} is free")])
    assert not named(examined(config_of(file), capsys)[1], "learner.port")


def test_a_silent_judge_server_is_a_warning(file: Path, small: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        judge = (
            f"judging.judge={{kind: endpoint, url: '{url}', model: m, request_retries: 0, request_timeout_seconds: 2}}"
        )
        config = config_of(file, judge, "judging.timeout_seconds=3")
        assert named(examined(config, capsys)[1], "judge server") == [("ok", f"{url}: connected")]
    code, found = examined(config, capsys)
    assert (code, named(found, "judge server")) == (0, [("warning", f"{url}: Connection refused")])


# What train asks first


def test_the_fatal_part_lists_errors_alone(file: Path, small: Path) -> None:
    assert doctor.fatal_checks(config_of(file)) == []
    wrong = ["model.path=owner/name", "generators.count=4000", f"output={file}/below-a-file"]
    found = doctor.fatal_checks(config_of(file, *wrong))
    assert [(finding.name, finding.level) for finding in found] == [("placement", "error"), ("disk", "error")]
    assert all(isinstance(finding, Finding) and finding.remedy for finding in found)


def test_code_for_a_cluster_is_an_error_without_one(file: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = ["cluster.address=auto", "cluster.runtime_env.working_dir=."]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (found,) = doctor.fatal_checks(config_of(file, *upload))
    assert found.text.startswith("cluster.runtime_env.working_dir takes code to the hosts of a cluster")
    assert found.remedy == "set cluster.address to HOST:PORT, or leave it out"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor.fatal_checks(config_of(file, *upload)) == []


def test_the_fatal_part_reads_headers_only_and_imports_nothing_heavy(file: Path) -> None:
    script = (
        "import sys, time\nfrom launch.doctor.checkup import fatal_checks\n"
        "from launch.settings.loading import load_config\n"
        f"config = load_config({str(file)!r})\nfatal_checks(config)\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'datasets', 'numpy')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# The command


def test_the_command_prints_one_json_object_and_exits_by_it(file: Path, small: Path, capsys) -> None:
    answered = [str(file), "--json"]
    assert main(["doctor", *answered]) == 0
    assert errors(json.loads(capsys.readouterr().out)) == []
    command = [sys.executable, "-m", "launch", "doctor", *answered, "model.path=/no/model"]
    wrong = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 1
    assert any("/no/model does not exist" in line for line in errors(json.loads(wrong.stdout)))


def test_a_wrong_setting_is_a_wrong_request(file: Path, capsys) -> None:
    assert main(["doctor", str(file), "updates=0"]) == 2
    assert "updates: given 0" in capsys.readouterr().err


# Models


def test_missing_weights_are_an_error_and_unused_ones_told(file: Path, small: Path, tmp_path: Path, capsys) -> None:
    own = tmp_path / "own"
    tiny_llama(own, seed=0)
    matrix, extra = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(own, lambda tensors: tensors | {extra: torch.ones(16)})
    code, found = examined(config_of(file, f"model.path={own}"), capsys)
    ((level, text),) = named(found, "model")
    assert (code, level) == (0, "warning")
    assert text.endswith(f"1 tensor of its files is not part of LlamaForCausalLM: '{extra}'")
    rewrite(own, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != matrix})
    code, found = examined(config_of(file, f"model.path={own}"), capsys)
    ((level, text),) = named(found, "model")
    assert (code, level) == (1, "error")
    assert f"lacks the weights '{matrix}' of LlamaForCausalLM, which would be random" in text


def test_every_token_that_ends_an_answer_is_shown(file: Path, small: Path, tmp_path: Path, capsys) -> None:
    own = tmp_path / "own"
    tiny_llama(own, seed=0)
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    _, found = examined(config_of(file, f"model.path={own}"), capsys)
    assert named(found, "tokenizer") == [
        ("ok", "96 tokens of the model's 96, answers end with '</s>', 'w3', 'w7', no chat template")
    ]


def test_heads_that_the_engine_on_cpu_lacks_are_refused_first(file: Path, small: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    tiny_llama(own, seed=0)
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(settings | {"head_dim": 16}))
    found = doctor.fatal_checks(config_of(file, f"model.path={own}"))
    assert [(finding.name, finding.level) for finding in found] == [("attention", "error")]
    assert found[0].text.startswith("heads of 16 dimensions, and vLLM's attention on CPU has those of 32, 64, 80")
    on_gpu = config_of(file, f"model.path={own}", "learner.gpus_per_rank=1")
    assert "attention" not in {finding.name for finding in doctor.fatal_checks(on_gpu)}


def test_a_judge_that_fails_here_is_a_warning_if_it_runs_on_another_cluster(file: Path, small: Path, capsys) -> None:
    own = "judging.judge={kind: function, path: 'no_such_module:f'}"
    assert [level for level, _ in named(examined(config_of(file, own), capsys)[1], "judge")] == ["error"]
    ((level, text),) = named(examined(config_of(file, own, "cluster.address=127.0.0.1:1"), capsys)[1], "judge")
    assert (level, "no_such_module" in text) == ("warning", True)
