"""Mistakes in paths, data, models and judges: each is answered with what is there instead, and the next step."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.foreign import model_place
from launch.cli import main
from tests.launch.mistakes.cases import ROW, RUN, Change, Mistake, answered, each, rewritten, train

MODEL, WEIGHTS = "model/config.json", "model/model.safetensors"


def data(what: str, name: str, content: str | bytes, *words: str) -> Mistake:
    return Mistake(what, train(f"prompts.source={name}"), words, {name: content})


def source(what: str, name: str, *words: str) -> Mistake:
    return Mistake(what, train(f"prompts.source={name}"), words)


def model(what: str, path: str, *words: str, **more: object) -> Mistake:
    return Mistake(what, train(f"model.path={path}"), words, **more)  # type: ignore[arg-type]


def judge(what: str, path: str, *words: str, body: str = "def f(prompt, completions): return [0.0, 1.0]\n") -> Mistake:
    return Mistake(what, train(f"judging.judge.path={path}"), words, {"jx.py": body, "my-jx.py": body})


def weights_as(dtype: torch.dtype | None) -> Change:
    """Write the weights in another dtype; None: one of them as infinity."""

    def change(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        if dtype is None:
            tensors[min(name for name in tensors if "layers" in name)].view(-1)[-1] = torch.inf
        save_file({name: each.to(dtype or each.dtype) for name, each in tensors.items()}, directory / WEIGHTS)

    return change


def moved(source: str, *targets: str) -> object:
    def change(directory: Path) -> None:
        for target in targets:
            (directory / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / source, directory / target)
        (directory / source).unlink()

    return change


DATA = [
    data("an empty file", "p.jsonl", "", "holds no rows; give one with at least one"),
    data("a list in .jsonl", "p.jsonl", f"[{ROW}]", "is one JSON list", "let its name end in .json"),
    data("gzip", "p.jsonl", gzip.compress(ROW.encode()), "is gzipped; let its name end in .gz"),
    data("a pointer of Git LFS", "p.jsonl", "version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    data("UTF-16", "p.jsonl", ROW.encode("utf-16"), "UTF-16; save it as UTF-8"),
    data("an object in several lines", "p.jsonl", '{\n  "prompt": "w5"\n}\n', "write each in one line"),
    data("a web page", "p.jsonl", "<!DOCTYPE html>", "is a web page; download the file itself"),
    data("Parquet", "p.jsonl", "PAR1", "is a Parquet file; let its name end in .parquet"),
    data("no Parquet", "p.parquet", "not parquet", "is not a readable Parquet file", "write it again"),
    data("another column", "p.jsonl", '{"question": "w5"}\n', "no field 'prompt'", "prompts.prompt_field"),
    data("text", "p.txt", "w5\n", "ends in '.txt'; allowed are .jsonl"),
    source("a wrong name", "prompt.jsonl", "does not exist (looked in /", "such as prompts.jsonl"),
    source("a URL of the hub", "https://huggingface.co/datasets/openai/gsm8k", "is a URL; write openai/gsm8k"),
    source("another URL", "s3://b/x.jsonl", "'s3://b/x.jsonl' is a URL; download it"),
    source("a pattern", "*.jsonl", "'*.jsonl' does not exist", "one file or one directory"),
    source("a hub name without network", "openai/gsm8k", "HF_HUB_OFFLINE is set", "give an existing path"),
    Mistake("a split of a file", train("prompts.split=test"), ("'prompts.jsonl' has no splits", "leave that out")),
    Mistake("a split of a file for evaluations", train("prompts.validation_split=test"),
            ("prompts.validation_split: prompts.source 'prompts.jsonl' has no splits", "is 'test'")),
    source("a directory of a model", "model", "rows of prompts.source 'model' are malformed"),
    Mistake("a pipe", train("prompts.source=p.jsonl"), ("is a pipe", "write the rows to a file"),
            change=lambda d: os.mkfifo(d / "p.jsonl")),
    Mistake("a link to nothing", train("prompts.source=l.jsonl"), ("is a link to zz", "give an existing path"),
            change=lambda d: os.symlink("zz", d / "l.jsonl")),
    Mistake("links in a circle", train("prompts.source=l"), ("source 'l' is a link to l, which leads nowhere",),
            change=lambda d: os.symlink("l", d / "l")),
    Mistake("none", ("train", "x.yaml"), ("prompts.source is unset", "16 prompts", "set prompts.source"),
            {"x.yaml": RUN.replace("source: prompts.jsonl, ", "")}),
]  # fmt: skip
MODELS = [
    model("empty", "", "model.path '' is empty"),
    model("a file", WEIGHTS, "is a file; give its directory, model"),
    model("a configuration", "run.yaml", "is a file; give a Hugging Face directory"),
    model("a GGUF file", "m.gguf", "is a GGUF file", "examples/gguf_to_huggingface.py", files={"m.gguf": "GGUF"}),
    model("a URL of the hub", "https://huggingface.co/Qwen/Qwen2.5-0.5B", "is a URL; write Qwen/Qwen2.5-0.5B"),
    model("a name of another hub", "qwen2.5:0.5b", "'qwen2.5:0.5b' is no directory", "owner/name"),
    model("a wrong name", "./modle", "'./modle' does not exist (looked in /", "nearest: model"),
    model("its parent", ".", "has no config.json; the model is in model: give that"),
    model("a link in a circle", "l", "is a link to l", change=lambda d: os.symlink("l", d / "l")),
    model("a cache of the hub", "models--a", "the model is in models--a/snapshots/abc: give that",
          change=moved(MODEL, "models--a/snapshots/abc/config.json")),
    model("an unfinished run", "runs/a", "is a run without a final model", "hf directory",
          files={"runs/a/config.yaml": "", "runs/a/checkpoints/x": ""}),
    model("an adapter", "ad", "holds a LoRA adapter of ./model", "`offbeat merge ad DIRECTORY`",
          files={"ad/adapter_config.json": '{"base_model_name_or_path": "./model"}'}),
    model("not cached", "no/model", "'no/model'", "HF_HUB_OFFLINE is set", "give a Hugging Face directory"),
    model("no tokenizer", "./model", "it has no tokenizer.json; give a directory",
          change=lambda d: (d / "model/tokenizer.json").unlink()),
    model("a broken config.json", "./model", "model/config.json cannot be read", "restore it", files={MODEL: "{"}),
    model("a size of a wrong type", "./model", "config.json of './model'", "hidden_size", "restore it",
          change=rewritten("config.json", hidden_size="64")),
    model("an activation that is not there", "./model", "holds no model that transformers can build: it has no 'foo'",
          change=rewritten("config.json", hidden_act="foo")),
    model("an architecture of nobody's", "./model", "names the architecture FooForCausalLM, which engines cannot",
          'write "architectures": ["LlamaForCausalLM"]',
          change=rewritten("config.json", architectures=["FooForCausalLM"])),
    model("a classifier's architecture", "./model", "names the architecture LlamaForSequenceClassification", "if it is",
          change=rewritten("config.json", architectures=["LlamaForSequenceClassification"])),
    model("no layers", "./model", "config.json has 0 as num_hidden_layers; allowed: integer >= 1",
          change=rewritten("config.json", num_hidden_layers=0)),
    model("another kind of model", "./model", "T5Config is the configuration of another kind of model than is needed",
          change=rewritten("config.json", model_type="t5")),
    model("sizes that do not divide", "./model", "hidden size (65)", "heads (2)", "restore it",
          change=rewritten("config.json", hidden_size=65)),
    model("another shape", "./model", "has the shape (64, 128)", "needs (64, 256)", "use the config.json that belongs",
          change=rewritten("config.json", intermediate_size=256)),
    model("one layer more", "./model", "lacks the weights 'model.layers.2", "restore its files",
          change=rewritten("config.json", num_hidden_layers=3)),
    model("quantised", "./model", "is quantised (gptq)", "give the model that it was made from",
          change=rewritten("config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
    model("no weights", "./model", "has no *.safetensors weights; save", change=lambda d: (d / WEIGHTS).unlink()),
    model("a GGUF beside config.json", "./model", "but a GGUF file", change=moved(WEIGHTS, "model/m.gguf")),
    model("half a download", "./model", "did not end; download the model again",
          change=moved(WEIGHTS, "model/model.safetensors.incomplete")),
    model("one part of two", "./model", "model-00001-of-00002.safetensors", "download the model again",
          change=moved(WEIGHTS, "model/model-00001-of-00002.safetensors")),
    model("zero bytes", "./model", "it has 0 bytes", "restore it from its source", files={WEIGHTS: b""}),
    model("a pointer of Git LFS", "./model", "run `git lfs pull`", files={WEIGHTS: b"version https://git-lfs.g"}),
    model("whole numbers", "./model", "of the dtype I8, whole numbers", "that it was made from",
          change=weights_as(torch.int8)),
    model("NaN", "./model", "tensor 'model.", "model.safetensors holds NaN", "restore it", change=weights_as(None)),
    model("pickles", "./model", "as a pickle (pytorch_model.bin)", change=moved(WEIGHTS, "model/pytorch_model.bin")),
]  # fmt: skip
TEMPLATES = [
    Mistake("no Jinja", train("model.chat_template='{% if %}'"), ("cannot write a user's message: line 1", "correct")),
    Mistake("a refusal", train("model.chat_template='{{ raise_exception(\"no\") }}'"), ("message: no; correct it",)),
    Mistake("nothing written", train("model.chat_template='{{ \"\" }}'"), ("leaves out a user's message",)),
]
JUDGES = [
    judge("a file", "jx.py:f", "'jx.py:f' is not an import path", "as jx:f"),
    judge("a path", "./judges/jx.py:f", "as judges.jx:f"),
    judge("dots only", "jx.f", "as jx:f"),
    judge("a hyphen", "my-jx:f", "a module's name has letters, digits and underscores alone", "rename the file"),
    judge("a space", "my jx:f", "a module's name has letters", "rename the file"),
    judge("a large module", "os:f", "'os' has no function 'f'", "name one that it has: ", ", and ", " more"),
    judge("a digit first", "1jx:f", "a module's name has letters", "rename the file"),
    judge("a relative import", "jx:f", "relative import", "without the dot", body="from . import prompts\n"),
    judge("a class", "jx:f", "'jx:f' is a class; name a function", body="class f: pass\n"),
    judge("the arguments of two forms", "jx:f", "f(completions, prompt) cannot judge; write it as f(prompt, compl",
          body="def f(completions, prompt): ...\n"),
    judge("a number beyond floats", "jx:f", "NaN or infinity",
          body="def f(prompt, completions): return [10**400, 1]\n"),
    judge("it raises from another error", "jx:f", "RuntimeError: no, from ZeroDivisionError: division",
          body="def f(*_):\n try: 1 / 0\n except Exception as e: raise RuntimeError('no') from e\n"),
    judge("it raises several errors", "jx:f", "[ValueError: b; KeyError: 'c']",
          body="def f(*_): raise ExceptionGroup('a', [ValueError('b'), KeyError('c')])\n"),
    judge("another name", "jx:g", "has no function 'g'; name one that it has: f"),
    judge("no function", "jx:f", "has no function 'f' (f is of type int)", "define it there", body="f = 5\n"),
    judge("no module", "nope:f", "No module named 'nope'", "put it in the working directory"),
    judge("a syntax error", "jx:f", "SyntaxError", "jx.py, line 1", "correct the module", body="def f(:\n"),
    judge("a wrong signature", "jx:f", "f(completion) cannot judge; write it as", body="def f(completion): ...\n"),
    judge("nothing", "jx:f", "answered None; it must return", body="def f(prompt, completions): pass\n"),
    judge("one score of two", "jx:f", "answered list of 1", "2 finite",
          body="def f(prompt, completions): return [1]\n"),
    judge("it raises", "jx:f", "ZeroDivisionError", "jx.py:1", "correct the function",
          body="def f(prompt, completions): return [1 / 0]\n"),
    Mistake("a judge of the world", train("judging.judge={kind: gold}"), ("is not one of the embedded world's 16",)),
    Mistake("no answers", train("judging.judge={kind: verifier}"), ("prompts.answer_field is unset; set it",)),
]  # fmt: skip
DIRECTORIES = [
    Mistake("pairs over the prompts", ("evaluate", "run.yaml", "--pairs", "prompts.jsonl"),
            ("--pairs prompts.jsonl cannot be written: the command reads it; give another path",)),
    Mistake("a directory as a result", ("evaluate", "run.yaml", "--output", "model"),
            ("--output model cannot be written: it is no regular file", "give another path")),
    Mistake("two sources", ("data", "demos.jsonl", "prompts.jsonl", "--output", "d"),
            ("prompts.jsonl: a second source; put the files into one directory",)),
    Mistake("a file as a new run's model", ("init", "y.yaml", "--model", "run.yaml"), ("--model run.yaml is a file",)),
    Mistake("checkpoints removed after the end", train("--resume", "--output", "r"),
            ("no checkpoint in r/checkpoints, and r holds a completed run", "restore a checkpoint"),
            {"r/config.yaml": RUN, "r/summary.json": '{"status": "completed"}'}),
    Mistake("no threshold", ("evaluate", "run.yaml", "--threshold", "nan"), ("given nan; allowed: a finite number",)),
    Mistake("below /proc", train("output=/proc/foo"), ("/proc is not a writable directory", "--output DIR")),
    Mistake("a long name", train(f"output={'x' * 300}"), ("300 bytes, of at most 255", "--output DIR")),
    Mistake("below a file", train("output=run.yaml/x"), ("run.yaml is not a writable directory", "--output DIR")),
    Mistake("a link to nothing", train("output=l"), ("l is not a writable directory", "--output DIR"),
            change=lambda d: os.symlink("nowhere/x", d / "l")),
    Mistake("a model", train("output=model"), ("model is not empty; choose another directory",)),
    Mistake("a stage below /proc", ("sft", "sft.yaml", "output=/proc/x"), ("/proc is not a writable", "--output DIR")),
    Mistake("a stage's ranks", ("sft", "sft.yaml", "learner.ranks=5000"), ("5000 of", "lower learner.ranks")),
    Mistake("a stage's GPUs", ("sft", "sft.yaml", "learner.gpus_per_rank=1"), ("1 of 0 GPUs", "gpus_per_rank")),
    Mistake("a stage's model", ("sft", "sft.yaml", "model.path=./modle"), ("does not exist", "nearest: model")),
    Mistake("data to /proc", ("data", "prompts.jsonl", "--output", "/proc/x"), ("/proc is not a writable directory",)),
    Mistake("an adapter to merge", ("merge", "nope", "out"), ("no directory nope", "give that of a LoRA adapter")),
    Mistake("a model to merge", ("merge", "model", "out"), ("lacks adapter_config.json; give the directory",)),
    Mistake("a damaged record of the run", train("--resume"), ("runs/run/config.yaml cannot be read", "from a copy"),
            {"runs/run/config.yaml": "a: ["}),
    Mistake("a record that is a list", train("--resume"), ("runs/run/config.yaml holds no settings", "from a copy"),
            {"runs/run/config.yaml": "- a"}),
    Mistake("no run to resume", train("--resume"), ("no run in runs/run", "leave out --resume to start one")),
    Mistake("no run to report", ("report", "runs/nope"), ("there is no directory runs/nope; give the directory",)),
    *(
        Mistake(f"a file to {verb}", (verb, "run.yaml"), ("run.yaml is a file, not the directory of a run; give",))
        for verb in ("report", "samples", "replay", "plan", "verify")
    ),
    *(
        Mistake(f"the parent of runs to {verb}", (verb, "runs"), ("holds 2 runs: runs/a, runs/b; give one of them",),
                {"runs/a/config.yaml": RUN, "runs/b/config.yaml": RUN})
        for verb in ("samples", "replay", "plan")
    ),
    Mistake("a stage to replay", ("replay", "r"), ("r is a run on a fixed data set; give one of `offbeat train`",),
            {"r/config.yaml": "training: {epochs: 1}\n"}),
    Mistake("no model to talk to", ("chat", "./modle"), ("does not exist", "nearest: model")),
]  # fmt: skip


@each([*DATA, *MODELS, *TEMPLATES, *JUDGES, *DIRECTORIES])
def test_a_mistake_in_a_path_is_answered_with_what_is_there_and_the_next_step(mistake, capsys):
    answered(mistake, capsys)


def test_a_home_a_space_capitals_and_packed_data_are_no_mistakes(ray_would_start, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("model").rename("my model")
    Path("P.JSONL").write_text(ROW)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["w5"]}), "p.parquet")
    Path("p.jsonl.gz").write_bytes(gzip.compress(ROW.encode()))
    for source in ("p.parquet", "p.jsonl.gz"):
        with pytest.raises(ray_would_start):
            main(["train", "run.yaml", "model.path=~/my model", f"prompts.source={source}", f"output={source}-run"])
    with pytest.raises(ray_would_start):
        main(["train", "run.yaml", "model.path=~/my model", "prompts.source=P.JSONL", "output=~/runs/a"])
    assert Path("runs/a/config.yaml").is_file()


def test_a_silent_hub_is_told_at_once(monkeypatch, capsys):
    """transformers tries for half a minute, and says so in six lines of its own."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in model_place._PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    model_place._no_answer.cache_clear()
    assert main(["train", "run.yaml", "model.path=no/such-model"]) == 2
    assert "the hub 127.0.0.1 does not answer" in capsys.readouterr().err
