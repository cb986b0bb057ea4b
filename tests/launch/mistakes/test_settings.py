"""Mistakes in settings, on the command line and in YAML: each is answered with the value, the limit, the next step."""

from __future__ import annotations

import os

import pytest

from launch.cli import main
from launch.settings.loading import dump_config, load_config
from tests.launch.mistakes.cases import RUN, Mistake, answered, each, train


def typed(what: str, setting: str, *words: str) -> Mistake:
    return Mistake(what, train(*setting.split("  ")), words)


def yaml(what: str, text: str | bytes, *words: str) -> Mistake:
    return Mistake(what, ("train", "x.yaml"), words, {"x.yaml": text})


def run(old: str, new: str) -> str:
    assert old in RUN
    return RUN.replace(old, new)


NAMES = [
    typed("a word of another trainer", "kl_coef=0.1", "kl_coef", "learner.loss.tau"),
    typed("a name in the wrong section", "learner.learning_rate=1e-5", "write learner.optimizer.lr=1e-05"),
    typed("capitals", "Updates=3", "Updates: no such setting; write updates=3"),
    typed("a path in place of a mapping", "deepspeed=ds.json", "write learner.deepspeed=VALUE; allowed: mapping"),
    typed("a judge in place of its kind", "judging.judge=judge:score", "{kind: function, path:"),
    typed("true in place of a rank", "learner.lora=true", "learner.lora.rank=VALUE; allowed: integer >= 1"),
    typed("a colon", "updates: 5", "write KEY=VALUE, updates=5"),
    typed("an option for settings", "-o  updates=3", "No such option: -o", "write updates=3"),
    typed("a space for the equals sign", "updates  3", "updates: not an override", "updates=VALUE"),
    typed("a short option", "-lr=3", "No such option: -lr; write learner.optimizer.lr=3"),
    typed("two configurations", "other.yaml", "other.yaml: a second configuration; give one file"),
]
VALUES = [
    typed("minutes", "replay.lease_seconds=10m", "given '10m'; allowed: number > 0; write replay.lease_seconds=600"),
    typed("hours", "judging.timeout_seconds=2h", "write judging.timeout_seconds=7200"),
    typed("gigabytes", "cluster.object_store_mib=2GB", "integer >= 80; write cluster.object_store_mib=2048"),
    typed("a thousands separator", "updates=1,000", "given '1,000'; allowed: integer >= 1; write updates=1000"),
    typed("a percent sign", "prompts.validation_fraction=5%", "write prompts.validation_fraction=0.05"),
    typed("base 60", "updates=1:30", "given '1:30'; allowed: integer >= 1"),
    typed("beyond 64 bits", "seed=18446744073709551616", "given 18446744073709551616", "below 2^63; lower it"),
    typed("fp16", "learner.dtype=fp16", "given 'fp16'; allowed: float32 | bfloat16; nearest: bfloat16"),
    typed("a date as a name", "name={a: 1}", "name: given", "allowed: text of letters"),
    typed("temperature 0", "sampling.temperature=0", "vLLM samples at 0.01", "set 0.01 or more"),
    typed("a negative token", "sampling.stop_token_ids=[-1]", "given [-1]; allowed: list of integers"),
    typed("a token that the model has not", "sampling.stop_token_ids=[96]", "names 96", "0 to 95", "leave it out"),
    typed(
        "a path as a name", "name=a/b c", "name: given 'a/b c'", "write name=a-b-c, or a directory with --output DIR"
    ),
    typed("nothing as output", "output=''", "output: given '', which is empty; allowed: a directory"),
    typed("a space before the output", "output=' a'", "which begins or ends with a space", "correct it"),
    typed("a URL as output", "output=s3://bucket/run", "given 's3://bucket/run', a URL; allowed: a directory"),
    typed("no {prompt}", "prompts.template=Question", "given 'Question'", "0 times", "put it where the prompt goes"),
    typed("two {prompt}", "prompts.template={prompt} {prompt}", "holds {prompt} 2 times"),
    typed("a URL without scheme", "judging.judge={kind: endpoint, url: 'a:80/v1', model: m}", "write http://a:80/v1"),
    typed("a port", "judging.judge={kind: endpoint, url: 'http://a:99999', model: m}", "99999", "1 to 65535"),
    typed("flat members", "judging.judge={kind: ensemble, members: [{kind: gold}]}", "member 1.judge: missing; add it"),
    typed("a scheme as an address", "cluster.address=ray:/x", "given 'ray:/x'; allowed: auto, local or HOST:PORT"),
    typed("Ray's client", "cluster.address=ray://h:10001", "cannot run a training: write h:6379"),
    typed("a dashboard", "cluster.address=http://h:8265", "a URL takes jobs", "`offbeat submit ray`", "h:6379"),
    typed("an address without a port", "cluster.address=10.0.0.1", "write 10.0.0.1:6379, or the port"),
    typed("two ports", "cluster.address=host:6379:x", "given 'host:6379:x'", "write host:6379"),
    typed("a port that is none", "cluster.address=host:99999", "correct the port, which is 1 to 65535"),
    typed("a variable as output", "output=$HOME/x", "output: given '$HOME/x'", "not filled in; write the value"),
    typed("a variable as a number", "seed=${SEED}", "1 mistake", "seed: given '${SEED}'", "write the value"),
    typed("half a character", 'cluster.address="\\ud800"', "cluster.address: given '\\ud800', which is no text"),
    Mistake(
        "endless epochs",
        ("sft", "sft.yaml", "training.epochs=1e12"),
        ("training.epochs: given 1000000000000", "allowed: number > 0 and <= 100000"),
    ),
    typed("one member", "judging.judge={kind: ensemble, members: []}", "given 0; allowed: 2 or more; add some"),
]
COMBINATIONS = [
    typed(
        "evaluations on the prompts of training",
        "prompts.validation_source=prompts.jsonl",
        "'prompts.jsonl', which is what is trained on",
        "set prompts.validation_fraction",
    ),
    typed("offload on CPU", "learner.offload_optimizer=true", "is for GPUs", "gpus_per_rank is 0", "leave it"),
    typed("memory of a GPU on CPU", "generators.gpu_memory_utilization=0.9", "0.9 is for GPUs", "leave it out"),
    typed("nccl on CPU", "publication.transport=nccl", "needs GPUs", "set the transport to shm"),
    typed("lengths", "sampling.max_new_tokens=30", "16", "= 46 exceed generators.max_model_len 32", "raise"),
    typed("the model's window", "generators.max_model_len=4096", "4096 exceeds the 512 positions", "lower it to 512"),
    typed("heads", "generators.tensor_parallel_size=3", "3 does not divide 2 query heads", "to 2"),
    typed("groups of ranks", "learner.ranks=3  learner.sequence_parallel=2", "2 does not divide ranks 3", "multiple"),
    typed("more cores than there are", "learner.ranks=4000", "4000 learner ranks", "4001 of", "lower generators.count"),
    typed("reuse in lease order", "replay.max_reuse=2", "max_reuse 2", "'lease'", "set order to 'ready'"),
    typed("never published", "updates=3  replay.updates_per_publish=2", "updates 3", "2", "set updates to 2 or 4"),
    typed("leases too short", "replay.lease_seconds=5", "181.5 s", "replay.lease_seconds 5; raise the last"),
]
BILLION = "=1000000000"
SIZES = [
    *(
        typed(f"a billion {name}", name + BILLION, f"{name}: given 1000000000; allowed: integer >= ", " and <= ")
        for name in (
            "generators.count",
            "generators.tensor_parallel_size",
            "generators.max_running_prompts",
            "generators.max_model_len",
            "generators.kv_cache_mib",
            "judging.count",
            "learner.ranks",
            "reference.count",
            "replay.max_staleness",
            "replay.prompts_per_update",
            "sampling.completions_per_prompt",
        )
    ),
    typed(
        "a billion opponents",
        "learner.loss={kind: nash_pg, opponent: {completions_per_prompt: 1000000000}}",
        "opponent.completions_per_prompt: given 1000000000; allowed: integer >= 1 and <= 1024",
    ),
    typed("memory that is not there", "generators.kv_cache_mib=9000000", "memory", "with", "generators.kv_cache_mib"),
]
YAML = [
    yaml("tabs", run("judging:", "samples:\n\tlog: false\njudging:"), "line 8, column 1", "indent with spaces"),
    yaml("a key twice", RUN + "updates: 5\n", "line 12", "`updates` is written twice", "leave one of them out"),
    yaml("two documents", RUN + "---\nupdates: 3\n", "another document", "keep one document"),
    yaml("a list", "- a\n- b\n", "holds [a, b]; allowed: sections"),
    yaml("no space after a colon", run("updates: 2", "updates:2"), "line 3", "with a space after the colon"),
    yaml("a tag", RUN + "seed: !!python/object/apply:os.system ['ls']\n", "line 12", "without `!`"),
    yaml("UTF-16", RUN.encode("utf-16"), "byte 0 is not UTF-8; save it as UTF-8"),
    yaml("braces of a template", run("./model", "{{ model }}"), "line 3", "belongs in quotes"),
    yaml(
        "dots",
        RUN + "learner.optimizer.lr: 1e-5\n",
        "instead of dots; write learner: {optimizer: {lr: 1e-05}}",
    ),
    yaml("an unquoted date", run("name: run", "name: 2026-11-30"), "name: given 2026-11-30", "put it in quotes"),
    yaml("a section as a list", RUN + "samples: [log]\n", "samples: given [log]; allowed: a section"),
    yaml("another file as base", "base: run.yaml\n" + RUN, "base: no such setting; a file stands alone", "> mine.yaml"),
    yaml(
        "a section in another one",
        run("prompts: {", "prompts: {sampling: {completions_per_prompt: 2}, "),
        "prompts.sampling: no such setting; write `sampling:` at the start of a line, on its own",
    ),
    yaml("a section outside of its own", RUN + "optimizer: {foo: 1}\n", "indent `optimizer` as a part of `learner`"),
    yaml(
        "spaces from a web page",
        run("model: {path: ./model}", "model:\n\u00a0\u00a0path: ./model"),
        "line 4: not valid YAML: the line begins with the character U+00A0, which only looks like a space",
        "indent with plain spaces",
    ),
    yaml(
        "a bell",
        RUN + "seed: \x071\n",
        "line 12, column 7: not valid YAML: the special character U+0007 is not allowed; remove that character",
    ),
    yaml("typographic quotes", run("'judge:score'", "\u201cjudge:score\u201d"), "in typographic quotes; write plain"),
    yaml(
        "a list of judges",
        run("{judge: {kind: function, path: 'judge:score'}}", "{judge: [{kind: gold}]}"),
        "judging.judge: given [{kind: gold}]",
        "write {kind: ensemble, members: [{judge: {...}}, ...]}",
    ),
    yaml("nothing", "", "model.path: missing; pass model.path=VALUE"),
]
FILES = [
    Mistake("a wrong name", ("train", "rnu.yaml"), ("no such file", "looked in /", "nearest file: run.yaml")),
    Mistake("no ending", ("train", "run"), ("no such file", "nearest file: run.yaml")),
    Mistake("a preset of another verb", ("sweep", "embedded"), ("no such preset", "it is a preset of `offbeat train`")),
    Mistake("a file of another verb that is not there", ("sft", "x.yaml"), ("give a YAML file of `offbeat sft`",)),
    Mistake("empty", ("train", ""), ("CONFIG is empty; give a YAML file",)),
    Mistake("a URL", ("train", "https://x.y/run.yaml"), ("a URL", "download it")),
    Mistake("data", ("train", "prompts.jsonl"), ("ends in .jsonl", "then prompts.source=prompts.jsonl")),
    Mistake("weights", ("train", "model/model.safetensors"), ("ends in .safetensors", "then model.path=model")),
    Mistake("gzipped", ("train", "x.gz"), ("byte 1 is not UTF-8; unpack it first",), {"x.gz": b"\x1f\x8b\x08"}),
    Mistake("a directory", ("train", "model"), ("is the directory of a model; give a YAML file", "model.path=model")),
    Mistake(
        "a model to evaluate", ("evaluate", "model"), ("is the directory of a model", "a YAML file", "model.path=model")
    ),
    Mistake("one model to compare", ("compare", "model"), ("model is one model, and it takes two", "give another")),
    Mistake("a pipe", ("train", "p.yaml"), ("it is a pipe", "give a file"), change=lambda d: os.mkfifo(d / "p.yaml")),
    Mistake(
        "links in a circle", ("train", "l.yaml"), ("symbolic links",), change=lambda d: os.symlink("l.yaml", "l.yaml")
    ),
    Mistake("of another verb", ("sft", "run.yaml"), ("`offbeat train`", "run `offbeat train run.yaml`")),
]


@each([*NAMES, *VALUES, *COMBINATIONS, *SIZES, *YAML, *FILES])
def test_a_mistake_in_a_setting_is_answered_with_value_limit_and_next_step(mistake, capsys):
    answered(mistake, capsys)


@pytest.mark.parametrize(
    "setting",
    [
        "updates=1e3",
        "updates=010",
        "updates=1_000",
        "learner.optimizer.lr=1e-5",
        "prompts.template={prompt}: {prompt2}",
        "name='1e5'",
    ],
)
def test_what_is_no_mistake_is_taken_and_printed_so_that_it_reads_back(setting, tmp_path):
    config = load_config("run.yaml", [setting])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("address", "words"), [("http://h:8265", "`offbeat submit ray`"), ("h", "write h:6379")])
def test_a_mistake_in_the_variable_of_ray_is_told_with_its_name(address, words, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(["train", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"the variable RAY_ADDRESS: given '{address}'" in said
    assert words in said


def test_the_directory_has_no_mistake_of_its_own(ray_would_start):
    with pytest.raises(ray_would_start):
        main(["train", "run.yaml"])
