"""SECURITY.md as tests: what the source never does, and what is refused when it is tried."""

from __future__ import annotations

import ast
import io
import json
import pickle
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file

from actors.errors import UsageError
from actors.hub import file_tensors, read_config, require_safetensors
from actors.judges.config import EndpointJudgeConfig, RewardModelJudgeConfig
from launch.cli import main
from launch.doctor.findings import Finding, show
from launch.output.board import Board
from launch.output.run_directory import RunDirectory
from launch.replay.report import ReplayReport
from launch.settings.fields import settings
from launch.settings.loading import dump_config, load_config
from launch.settings.run import RunConfig
from launch.settings.verbs import VERBS
from launch.settings.yaml_text import BoundedLoader
from learner.backend import checkpoints
from tests.fakes.generators import spec_of

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("actors", "learner", "launch") for path in (ROOT / package).rglob("*.py"))

# ---------------------------------------------------------------- what the source never does

UNPICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
ARCHIVES = {"tarfile", "zipfile"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
YAML_LOADERS = {"yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all"}
IMPORTERS = {"actors/user_code.py", "learner/stages/worker.py", "launch/settings/verbs.py"}
"""Import a module by a name that is computed: the user's judge function, and two tables of our own modules."""
SANDBOXED = {f"actors/judges/sandbox/{name}.py" for name in ("solution", "tester")}
"""Scripts that run in the sandbox alone, and evaluate what they are given there."""


def violations(source: str, place: str = "") -> list[str]:
    """What `source` does that no module may, as `line: what`."""
    return [f"{line}: {what}" for line, what in _violations(ast.parse(source), place)]


def _violations(tree: ast.AST, place: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            for module in {each.partition(".")[0] for each in modules} & (UNPICKLERS | ARCHIVES):
                yield node.lineno, f"imports {module}"
        elif isinstance(node, ast.Call):
            for what in _forbidden(node, place):
                yield node.lineno, what


def _forbidden(call: ast.Call, place: str) -> Iterator[str]:
    if place in SANDBOXED:
        return
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    if name in EVALUATORS | SHELLS | YAML_LOADERS or name in ("jinja2.Environment", "jinja2.Template"):
        yield f"calls {name}"
    if name == "yaml.load" and [ast.unparse(each) for each in call.args[1:]] != ["BoundedLoader"]:
        yield "calls yaml.load with another loader than ours"
    if name.endswith("import_module") and place not in IMPORTERS:
        yield f"calls {name}"
    if name in ("torch.load", "torch.jit.load") and given.get("weights_only") != "True":
        yield f"calls {name} without weights_only=True"
    if given.get("shell", "False") != "False":
        yield f"calls {name} with a shell"
    if given.get("trust_remote_code", "False") != "False":
        yield f"calls {name} with trust_remote_code"
    if name.endswith(".from_pretrained"):
        if "trust_remote_code" not in given:
            yield f"calls {name} without trust_remote_code=False, which asks on a terminal"
        if "Model" in name and given.get("use_safetensors") != "True":
            yield f"calls {name} without use_safetensors=True"


def test_no_module_unpickles_evaluates_runs_a_shell_or_trusts_a_model_s_code() -> None:
    names = [(path, str(path.relative_to(ROOT))) for path in SOURCES]
    assert names
    assert [f"{name}:{what}" for path, name in names for what in violations(path.read_text("utf-8"), name)] == []


def test_what_evaluates_in_the_sandbox_is_imported_nowhere_else() -> None:
    names = [name.removesuffix(".py").replace("/", ".") for name in SANDBOXED]
    outside = [path for path in SOURCES if str(path.relative_to(ROOT)) not in SANDBOXED]
    assert not [
        path
        for path in outside
        for name in names
        if name in path.read_text("utf-8").replace(f"{name} import main; main()", "")
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "import tarfile",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=wanted)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "AutoConfig.from_pretrained(path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "jinja2.Environment()",
        "importlib.import_module(name)",
        "AutoTokenizer.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "LLM(trust_remote_code=config.trusted)",
    ],
)
def test_every_rule_finds_what_it_forbids(source: str) -> None:
    assert len(violations(source)) == 1


def test_the_only_yaml_loader_makes_plain_values() -> None:
    assert issubclass(BoundedLoader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", BoundedLoader)


# ---------------------------------------------------------------- models, checkpoints and templates from elsewhere


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self._marker,)


def _pickled_model(directory: Path, marker: Path) -> Path:
    from transformers import LlamaConfig

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaConfig(**sizes, num_attention_heads=1, num_labels=1).save_pretrained(directory)
    torch.save({"weight": Payload(marker)}, directory / "pytorch_model.bin")
    return directory


def test_the_payload_of_these_tests_does_run_where_it_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def _causal(directory: Path) -> Any:
    from learner.backend.models import load_model

    return load_model(directory, "float32")


def _exact(directory: Path) -> Any:
    from learner.world.exact import load_policy

    return load_policy(directory)


def _reward(directory: Path) -> Any:
    from actors.judges.models.reward_model import load_reward_model

    return load_reward_model(RewardModelJudgeConfig(path=str(directory)))


def _preference(directory: Path) -> Any:
    from actors.judges.models.classifier import load_classifier

    return load_classifier(directory, 1, "float32")


def _engine(directory: Path) -> Any:
    from actors.generation.engine import Engine

    return Engine(spec_of(directory))


@pytest.mark.parametrize("load", [_causal, _exact, _reward, _preference, _engine])
def test_a_model_whose_weights_are_a_pickle_is_refused_with_what_to_do(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    directory = _pickled_model(tmp_path / "model", tmp_path / "ran")
    with pytest.raises(UsageError, match=r"holds its weights as a pickle \(pytorch_model\.bin\).*save_pretrained"):
        load(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [_causal, _reward, _preference])
def test_a_pickle_beside_safetensors_is_not_read(load: Callable[[Path], Any], tmp_path: Path) -> None:
    """The file that has the right to the name is not the one that is asked for."""
    directory = _pickled_model(tmp_path / "model", tmp_path / "ran")
    save_file({"other": torch.ones(1)}, directory / "adapter_other.safetensors")
    require_safetensors(directory)
    with pytest.raises(UsageError, match=r"cannot be loaded|can be loaded"):
        load(directory)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run_and_not_asked_about(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass EvilConfig: pass\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match="trust_remote_code"):
        _causal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_holds_more_than_an_engine_s_state_is_not_read(tmp_path: Path) -> None:
    from learner.backend.engine_state import CheckpointFiles

    torch.save({"module": Payload(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Unsupported"):
        CheckpointFiles().load(str(tmp_path / "state.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{{ first.__class__.__mro__ }} {{ second }}",
        "{{ first }} {{ second.__init__.__globals__ }}",
        "{{ first }} {{ second }} {{ messages.append(1) }}",
    ],
)
def test_a_judge_s_template_reaches_texts_and_nothing_behind_them(text: str) -> None:
    from actors.judges.http.questions import compile_template

    template = compile_template(text, "pairs")
    with pytest.raises(jinja2.TemplateError):
        template.render(prompt="p", messages=[], answer="a", first="1", second="2")


# ---------------------------------------------------------------- text from outside

HOSTILE = "[red]a[/red] \x1b[2J\x1b]0;owned\x07 \u202etxt.exe sk-" + "a1B2" * 8
HARMLESS = r"[red]a[/red] \x1b[2J\x1b]0;owned\x07 \u202etxt.exe sk-***"
OWN_WORDS = {
    "launch/cli.py": 1, "launch/data/prepare.py": 1, "launch/demo/demo.py": 1, "launch/doctor/findings.py": 2,
    "launch/output/summary.py": 2, "launch/replay/report.py": 1,
    "launch/samples.py": 1, "launch/settings/fields.py": 2, "launch/settings/options.py": 2,
    "launch/submit/compose.py": 1, "launch/submit/kuberay.py": 1, "launch/submit/ray_cluster.py": 1,
    "launch/submit/slurm.py": 4, "launch/sweep/sweep.py": 1,
}  # fmt: skip
"""How many times a module prints what is no text from outside, or is shown before: tables, scripts, counts."""


def test_everything_else_that_is_printed_is_shown_first() -> None:
    found: dict[str, int] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            prints = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "print"
            if (
                prints
                and node.args
                and not isinstance(node.args[0], ast.Constant)
                and "shown(" not in ast.unparse(node)
            ):
                name = str(path.relative_to(ROOT))
                found[name] = found.get(name, 0) + 1
    assert found == OWN_WORDS


def _board(console: Console) -> None:
    Board(console).message(HOSTILE)


def _finding(console: Console) -> None:
    show(Finding("a", "error", HOSTILE, HOSTILE), console)


def _replay_report(console: Console) -> None:
    ReplayReport.render(mock.Mock(windows=[], metrics={}, lines=lambda: [HOSTILE]), console)


@pytest.mark.parametrize("printer", [_board, _finding, _replay_report])
@pytest.mark.parametrize("terminal", [True, False])
def test_hostile_text_is_printed_letter_by_letter(printer: Callable[[Console], None], terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=200, highlight=False)
    printer(console)
    printed = console.file.getvalue()
    assert HARMLESS in printed
    assert set(printed) <= set(HARMLESS) | set(string.printable)
    assert "\x1b" not in printed


def test_an_error_that_ends_a_command_is_printed_letter_by_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({HOSTILE: 1, "updates": HOSTILE}))
    assert main(["train", str(path)]) == 2
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert "a1B2" not in printed
    assert main(["train", f"{tmp_path}/\x1b[2J.yaml"]) == 2
    assert r"/\x1b[2J.yaml" in capsys.readouterr().err


# ---------------------------------------------------------------- secrets

SECRET = "hunter2-hunter2"
TRAIN = ["model.path=m"]


@pytest.mark.parametrize(
    "overrides",
    [
        [f"judging.judge={{kind: endpoint, url: 'http://ann:{SECRET}@h/v1', model: m}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://ann:{SECRET}/x@h/v1', model: m}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://ann:1@{SECRET}@h/v1', model: m}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, api_key_env: {SECRET}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, Authorization: {SECRET}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, extra_body: {{clientSecret: {SECRET}}}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, extra_body: {{h: {{auth: {SECRET}}}}}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, extra_body: {{pwd: [{SECRET}]}}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, api_key: {SECRET}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, extra_body: {{api_key: {SECRET}}}}}"],
        [f"judging.judge={{kind: endpoint, url: 'http://h/v1', model: m, extra_body: {{a: [{{token: {SECRET}}}]}}}}"],
        [f"api_key={SECRET}"],
        [f"updates=http://ann:{SECRET}@h"],
        [f"http://ann:{SECRET}@h"],
        [f"api_key='{SECRET}"],
    ],
)
def test_a_secret_in_a_configuration_is_refused_and_not_repeated(overrides: list[str]) -> None:
    with pytest.raises(UsageError) as refusal:
        load_config(None, [*TRAIN, *overrides])
    assert SECRET not in str(refusal.value)


def test_the_fields_that_a_request_needs_are_no_secrets() -> None:
    body = {
        "revision": "0af3" * 10,
        "lora_sha": "0af3" * 16,
        "guided_regex": "[A-C]{1,24}",
        "model": "Qwen2-7B-Instruct",
    }
    assert EndpointJudgeConfig(url="http://h/v1", model="m", extra_body=body).extra_body == body
    body = {"max_tokens": 5, "stop_token_ids": [1], "reasoning": {"effort": "low"}, "key_frames": "x"}
    assert EndpointJudgeConfig(url="http://h/v1", model="m", extra_body=body).extra_body == body


@pytest.mark.parametrize(
    "value",
    ["gsk_" + "a1B2" * 5, "AKIAIOSFODNN7EXAMPLE", "glpat-" + "a1B2" * 5, "a1B2c3D4" * 4, ["x", "ghp_" + "a1B2" * 5]],
)
def test_a_key_in_the_fields_of_a_request_is_refused_under_any_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"must hold no secret, and x\.y looks like one"):
        EndpointJudgeConfig(url="http://h/v1", model="m", extra_body={"x": {"y": value}})


def test_a_saved_configuration_masks_what_passed_for_no_secret() -> None:
    config = load_config(None, [*TRAIN, f"model.tokenizer=https://ann:{SECRET}@h/m"])
    saved = dump_config(config)
    assert SECRET not in saved
    assert yaml.safe_load(saved)["model"]["tokenizer"] == "https://***@h/m"
    with pytest.raises(UsageError, match=r"given 'ray://\*\*\*@h:1'.*write h:6379") as refused:
        load_config(None, [*TRAIN, f"cluster.address=ray://{SECRET}:ann@h:1"])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_setting_has_a_name_that_would_be_masked(verb: str) -> None:
    from actors.redaction import redact

    names = [entry.key for entry in settings(VERBS[verb].model)]
    assert names
    assert [name for name in names if redact("text", name) != "text"] == []


# ---------------------------------------------------------------- names that lead elsewhere


@pytest.mark.parametrize("name", ["..", "."])
def test_a_run_s_name_that_is_a_way_out_of_runs_is_refused(name: str) -> None:
    config = RunConfig.model_validate({"name": name, "model": {"path": "m"}})
    with pytest.raises(UsageError, match="cannot name a directory below runs/"):
        RunDirectory.open(config, resume=False)


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/b", "a\nb", ""])
def test_a_run_s_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name: given"):
        load_config(None, [*TRAIN, f"name={json.dumps(name)}"])


@pytest.mark.parametrize("pointer", ["..", "../update-1", "/update-1", ".tmp-update-1", "update-1/../update-1"])
def test_a_pointer_out_of_the_checkpoints_is_refused(pointer: str, tmp_path: Path) -> None:
    for part in ("deepspeed", "hf"):
        (tmp_path / "update-1" / part).mkdir(parents=True)
        (tmp_path / "update-1" / part / "file").touch()
    (tmp_path / "update-1" / "run_state.json").write_text("{}")
    root = tmp_path / "root"
    root.mkdir()
    (root / "latest").write_text(pointer)
    with pytest.raises(UsageError, match="not the name of a checkpoint"):
        checkpoints.latest(root)


def test_an_index_of_weights_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "private.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../private.safetensors"}}))
    with pytest.raises(UsageError, match=r"names '\.\./private\.safetensors', which is not a file beside it"):
        file_tensors(model)
