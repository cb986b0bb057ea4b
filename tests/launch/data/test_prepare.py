"""Data preparation as a user runs it: every row accounted for, prompts kept apart, the rules under a real model."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from actors import world
from actors.data.preference_layouts import PreferenceRow, prompt_key
from actors.data.preferences import read_preferences
from actors.errors import RunError, UsageError
from launch.cli import main
from launch.data import prepare as module
from launch.data.config import DataConfig
from launch.data.prepare import Preparation, prepare, run_data
from launch.data.report import LEFT_OUT, MEANINGS
from launch.settings.loading import load_config
from launch.settings.verbs import DATA
from learner.stages.perplexity import PerplexityModel
from learner.world.policy import TINY, build_policy

PROMPTS = [row["prompt"] for row in world.prompt_rows()]
WORDS = world.RESPONSE_WORDS


def pair(prompt: str = "red north", chosen: str = "stone", rejected: str = "paper", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configured(source: Path, *overrides: str) -> DataConfig:
    return load_config(None, [f"source={source}", f"output={source.parent / 'out'}", *overrides], DATA)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy of the embedded world with random weights, and its tokenizer."""
    path = tmp_path_factory.mktemp("policy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_policy(TINY)
        for parameter in model.parameters():
            parameter.data.mul_(4.0)
    model.save_pretrained(path)
    world.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(policy: Path) -> PerplexityModel:
    return PerplexityModel(policy)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """240 different pairs on the sixteen prompts."""
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    rows = [pair(prompt, *pairs[(15 * i + j) % 30]) for i, prompt in enumerate(PROMPTS) for j in range(15)]
    return write(tmp_path / "many.jsonl", *rows)


def test_one_file_without_a_model_is_written_as_both_splits_and_read_again(many: Path, tmp_path: Path) -> None:
    assert main(["data", str(many), "validation_fraction=0.3", "--output", str(tmp_path / "it's")]) == 0
    train, validation = (read_preferences(str(tmp_path / "it's"), split) for split in ("train", "validation"))
    assert Counter(row.id for row in train + validation) == Counter(row.id for row in read_preferences(str(many)))
    assert train
    assert validation
    assert not {prompt_key(row.prompt) for row in train} & {prompt_key(row.prompt) for row in validation}
    assert sorted(path.name for path in (tmp_path / "it's").iterdir()) == [
        "config.yaml", "left_out.jsonl", "report.json", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    again = load_config(tmp_path / "it's" / "config.yaml", [], DATA)
    assert (again.source, again.validation_fraction) == (str(many), 0.3)


def test_each_row_that_is_left_out_is_listed_with_place_and_reason(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    rows = [pair(), pair(chosen=""), pair(chosen="stone "), pair(chosen="paper", rejected="stone"), pair("gold east")]
    write(source, *rows)
    source.write_bytes(source.read_bytes() + b"\xff\n")
    run_data(configured(source, "on_malformed=skip", "contradictory=keep"), Console(quiet=True))
    listed = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert [(row["place"], row["reason"]) for row in listed] == [
        (f"{source}:2", "empty_response"),
        (f"{source}:6", "wrong_encoding"),
        (f"{source}:3", "duplicate"),
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["read"], report["kept"]) == (6, 3)
    assert {reason: count for reason, count in report["left_out"].items() if count} == {
        "empty_response": 1, "wrong_encoding": 1, "duplicate": 1,
    }  # fmt: skip
    dropped = prepare(configured(source, "on_malformed=skip", "contradictory=drop")).report
    assert (dropped.kept, dropped.left_out["contradictory"], dropped.left_out["duplicate"]) == (1, 3, 0)
    kept = prepare(configured(source, "on_malformed=skip", "deduplicate=false")).report
    assert (kept.kept, kept.left_out["duplicate"]) == (4, 0)


words = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
good_rows = st.builds(pair, st.sampled_from(PROMPTS[:3]), words, words).map(json.dumps)
junk = st.sampled_from(
    ["", "  ", "{", "3", "{}", '{"prompt": "red north", "chosen": "a"}', json.dumps(pair(chosen=3)),  # type: ignore[arg-type]
     json.dumps(pair(probability=2)), json.dumps(pair("")), '{"chosen": [], "rejected": []}', "\udcff",
     json.dumps(pair(chosen="\ud800")), json.dumps(pair("red " * 9)), json.dumps(pair(chosen="page " * 9))]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(good_rows | junk, max_size=25),
    ceiling=st.none() | st.floats(1.0, 6.0),
    gap=st.none() | st.floats(0.0, 3.0),
    mistakes=st.booleans(),
    contradictory=st.sampled_from(["keep", "drop"]),
)
def test_the_report_balances(
    scorer: PerplexityModel,
    lines: list[str],
    ceiling: float | None,
    gap: float | None,
    mistakes: bool,
    contradictory: str,
) -> None:
    """Every line that is not blank is kept in one split or left out for one reason."""
    lines = [json.dumps(pair("blue west")), *lines]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "p.jsonl"
        source.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
        config = configured(
            source, "on_malformed=skip", "model=/m", "max_prompt_tokens=8", "max_response_tokens=8",
            f"contradictory={contradictory}", f"filters.mistakes_only={mistakes}", "validation_fraction=0.5",
            *([] if ceiling is None else [f"filters.ceiling={{kind: value, log_perplexity: {ceiling}}}"]),
            *([] if gap is None else [f"filters.max_gap={gap}"]),
        )  # fmt: skip
        preparation = prepare(config, world.tokenizer(), scorer)
    report = preparation.report
    assert report.read == sum(bool(line.strip()) for line in lines)
    assert report.read == report.kept + sum(report.left_out.values())
    assert Counter(problem.reason for problem in preparation.left_out()) == +Counter(report.left_out)
    assert {split: len(preparation.rows(split)) for split in report.splits} == report.splits
    assert sum(report.splits.values()) == report.kept
    assert [outcome.rejected for outcome in report.rules] == [report.left_out[each.rule] for each in report.rules]
    lengths = report.histograms["prompt_length"]
    assert sum(lengths.after) == report.kept <= sum(lengths.before)


def slow_scores(scorer: PerplexityModel, rows: list[PreferenceRow]) -> list[tuple[float, float]]:
    """One response at a time, tokens written out by hand."""

    def score(prompt: str, response: str) -> float:
        ids = [world.VOCABULARY.index(word) for word in ("<bos>", *prompt.split(), "<sep>")]
        answer = [world.VOCABULARY.index(word) for word in (*response.split(), "<eos>")]
        return float(scorer.log_perplexities([(ids, answer)])[0])

    return [(score(str(row.prompt), row.chosen), score(str(row.prompt), row.rejected)) for row in rows]


def kept_rows(preparation: Preparation) -> list[PreferenceRow]:
    return [pair.row for pair in preparation.pairs if pair.left_out is None]


def test_each_rule_keeps_what_its_definition_says(many: Path, scorer: PerplexityModel) -> None:
    rows = read_preferences(str(many))
    scores = slow_scores(scorer, rows)
    middle = float(np.median([max(pair) for pair in scores]))
    for overrides, keeps in [
        ([f"filters.ceiling={{kind: value, log_perplexity: {middle}}}"], lambda good, bad: max(good, bad) <= middle),
        (["filters.max_gap=0.5"], lambda good, bad: abs(good - bad) <= 0.5),
        (["filters.mistakes_only=true"], lambda good, bad: bad <= good),
        ([], lambda good, bad: True),
    ]:
        preparation = prepare(configured(many, "model=/m", *overrides), world.tokenizer(), scorer)
        expected = [row for row, pair in zip(rows, scores, strict=True) if keeps(*pair)]
        assert kept_rows(preparation) == expected
        assert len(preparation.report.rules) == len(overrides)
        if overrides:
            assert 0 < len(expected) < len(rows), "a rule that rejects nothing or all shows nothing"


def test_a_ceiling_comes_from_the_model_s_own_samples_drawn_or_in_a_file(
    many: Path, tmp_path: Path, scorer: PerplexityModel
) -> None:
    """512 samples of one distribution have the same 0.9 quantile wherever they were drawn, up to chance."""
    drawn = configured(many, "model=/m", "filters.ceiling={kind: sampled, quantile: 0.9, max_new_tokens: 4}")
    first, again = (prepare(drawn, world.tokenizer(), scorer).report for _ in range(2))
    assert first == again
    assert first.own_samples is not None
    assert (first.own_samples.count, first.own_samples.quantile) == (512, 0.9)

    prompts = [list(world.prompt_token_ids(index)) for index in range(16)] * 40
    samples = scorer.sample(prompts, max_new_tokens=4, ends=(world.EOS,), seed=9)
    finished = [each for each in samples if each[1][-1] == world.EOS and len(each[1]) > 1]
    texts = [
        {"prompt": " ".join(world.VOCABULARY[i] for i in prompt[1:-1]),
         "response": " ".join(world.VOCABULARY[i] for i in response[:-1])}
        for prompt, response in finished
    ]  # fmt: skip
    file = write(tmp_path / "own.jsonl", *texts)
    config = configured(many, "model=/m", f"filters.ceiling={{kind: file, quantile: 0.9, source: {file}}}")
    found = prepare(config, world.tokenizer(), scorer).report
    own = scorer.log_perplexities(finished)
    assert found.ceiling == pytest.approx(np.quantile(own, 0.9), abs=1e-4)
    assert found.own_samples is not None
    assert found.own_samples.count == len(finished)
    assert found.own_samples.mean_log_perplexity == pytest.approx(own.mean(), abs=1e-4)


def test_drawn_samples_answer_different_prompts_of_the_data(
    many: Path, scorer: PerplexityModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    sample = scorer.sample

    def recorded(prompts: Any, **rest: Any) -> Any:
        asked.append((prompts, rest))
        return sample(prompts, **rest)

    monkeypatch.setattr(scorer, "sample", recorded)
    for seed in (0, 0, 1):
        ceiling = "filters.ceiling={kind: sampled, samples: 20, max_new_tokens: 3}"
        prepare(configured(many, "model=/m", f"seed={seed}", ceiling), world.tokenizer(), scorer)
    counts = Counter(tuple(prompt) for prompt in asked[0][0])
    assert set(counts) == {world.prompt_token_ids(index) for index in range(16)}
    assert sorted(counts.values()) == [1] * 12 + [2] * 4
    assert asked[0] == asked[1]
    assert [rest["seed"] for _, rest in asked] == [0, 0, 1]
    assert asked[0][1] == {"max_new_tokens": 3, "ends": (world.EOS,), "seed": 0}
    assert asked[0][0] != asked[2][0]


def test_the_model_sees_the_template_and_the_rows_are_written_without_it(many: Path, scorer: PerplexityModel) -> None:
    preparation = prepare(configured(many, "model=/m", "template=gold {prompt}"), world.tokenizer(), scorer)
    templated, *_ = preparation.pairs
    prompt = [world.VOCABULARY.index(word) for word in ("<bos>", "gold", "red", "north", "<sep>")]
    answers = [[world.VOCABULARY.index(word) for word in text.split()] + [world.EOS]
               for text in (templated.row.chosen, templated.row.rejected)]  # fmt: skip
    assert templated.tokens == (len(prompt), *map(len, answers))
    expected = scorer.log_perplexities([(prompt, answer) for answer in answers])
    assert templated.log_perplexities == pytest.approx(expected.tolist(), abs=1e-4)
    assert templated.row.prompt == "red north"


def test_groups_of_rows_are_scored_as_all_at_once(
    many: Path, scorer: PerplexityModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds the tokens of one group only."""
    config = configured(many, "model=/m", "filters.ceiling.kind=sampled", "filters.ceiling.samples=5")
    whole = prepare(config, world.tokenizer(), scorer)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 7)
    parts = prepare(config, world.tokenizer(), scorer)
    assert len(parts.pairs) > 14
    assert parts.report.ceiling == pytest.approx(whole.report.ceiling, abs=1e-4)
    for one, other in zip(parts.pairs, whole.pairs, strict=True):
        assert (one.tokens, one.left_out) == (other.tokens, other.left_out)
        assert one.log_perplexities == pytest.approx(other.log_perplexities, abs=1e-4)


def test_rows_that_are_all_held_out_are_refused_and_nothing_is_written(many: Path, tmp_path: Path) -> None:
    config = configured(many, "validation_fraction=0.9999")
    with pytest.raises(UsageError, match=r"validation_fraction 0\.9999 holds out all \d+ pairs .* lower it"):
        run_data(config)
    assert not (tmp_path / "out").exists()


def test_the_seed_decides_which_prompts_are_held_out(many: Path) -> None:
    sides = [
        {row.prompt for row in prepare(configured(many, "validation_fraction=0.5", f"seed={seed}")).rows("train")}
        for seed in (0, 0, 1)
    ]
    assert sides[0] == sides[1] != sides[2]


def test_texts_and_chats_in_one_source_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    chat = pair([{"role": "user", "content": "q"}])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="its prompts are 1 text and 1 chat"):
        prepare(configured(write(tmp_path / "p.jsonl", pair(), chat)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "red north", "response": ""}, "own.jsonl:1: field 'response' is empty; correct it or remove it"),
        ({"prompt": 3, "response": "stone"}, "own.jsonl:1: 'prompt' must be a text or a list of chat messages"),
        ({"prompt": "red north", "response": "stone " * 70}, "sample 0: 4 prompt and 71 response tokens, more than"),
        ({"prompt": [{"role": "user", "content": "red"}], "response": "stone"}, "tokenizer has no chat template"),
    ],
)
def test_a_file_of_samples_must_be_whole(
    many: Path, tmp_path: Path, scorer: PerplexityModel, row: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "own.jsonl", row)
    config = configured(many, "model=/m", f"filters.ceiling={{kind: file, source: {file}}}")
    with pytest.raises(UsageError, match=message):
        prepare(config, world.tokenizer(), scorer)


def test_what_exceeds_the_limits_or_the_model_s_context_is_malformed(tmp_path: Path, scorer: PerplexityModel) -> None:
    rows = [pair(), pair("red " * 70), pair(chosen="stone " * 70), pair("red " * 7), pair(chosen="stone " * 7)]
    source = write(tmp_path / "p.jsonl", *rows)
    skip = configured(source, "on_malformed=skip", "model=/m", "max_prompt_tokens=8", "max_response_tokens=7")
    report = prepare(skip, world.tokenizer(), scorer).report
    assert (report.kept, report.left_out["long_prompt"], report.left_out["long_response"]) == (1, 2, 2)
    with pytest.raises(UsageError) as caught:
        prepare(configured(source, "model=/m"), world.tokenizer(), scorer)
    assert f"{source}:2: 72 prompt tokens, more than the model's context of 64" in str(caught.value)
    assert str(caught.value).startswith("2 of 5 rows of source")


def test_rows_that_are_added_leave_every_other_on_its_side(tmp_path: Path) -> None:
    rows = [pair(str(number)) for number in range(60)]
    few = prepare(configured(write(tmp_path / "few.jsonl", *rows[:30]), "validation_fraction=0.5"))
    more = prepare(configured(write(tmp_path / "more.jsonl", *reversed(rows)), "validation_fraction=0.5"))
    for split in ("train", "validation"):
        assert {row.id for row in few.rows(split)} < {row.id for row in more.rows(split)}


def test_the_whole_command_with_a_model_reports_each_rule(
    many: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    settings = tmp_path / "data.yaml"
    settings.write_text(
        f"source: {many}\nmodel: {policy}\ndevice: cpu\nfilters: {{max_gap: 0.5, mistakes_only: true}}\n"
    )
    assert main(["data", str(settings), "--output", str(tmp_path / "deep" / "out")]) == 0
    report = json.loads((tmp_path / "deep" / "out" / "report.json").read_text())
    assert [rule["rule"] for rule in report["rules"]] == ["fluency_gap", "no_mistake"]
    first, second = report["rules"]
    assert first["judged"] == 240
    assert second["judged"] == 240 - first["rejected"]
    assert first["acceptance"] == pytest.approx(1 - first["rejected"] / 240)
    assert sorted(report["histograms"]) == [
        "chosen_length", "chosen_log_perplexity", "log_perplexity_difference", "prompt_length", "rejected_length",
        "rejected_log_perplexity",
    ]  # fmt: skip
    assert report["histograms"]["log_perplexity_difference"]["marks"] == [-0.5, 0.5]
    assert report["histograms"]["chosen_length"]["unit"] == "tokens"
    out = capsys.readouterr().out.split("\n")
    lines = [line.split()[:2] for line in out]
    assert ["240", "read"] in lines
    assert [f"-{first['rejected']}", "fluency_gap"] in lines
    assert [str(report["kept"]), "kept"] in lines
    (rule,) = [line.split() for line in out if line.startswith("fluency_gap")]
    assert rule[1:4] == ["240", str(first["rejected"]), f"{first['acceptance']:.1%}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "source 'missing.jsonl' does not exist"),
        (["SOURCE", "model=/no/such/model"], "model '/no/such/model' does not exist"),
        (["SOURCE", "filters.max_gap=1"], "filters are on and model is unset"),
        (["SOURCE", "device=cuda", "model=POLICY"], "torch finds no GPU here"),
    ],
)
def test_a_wrong_request_ends_with_2_and_writes_nothing(
    many: Path, policy: Path, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    filled = [each.replace("SOURCE", str(many)).replace("POLICY", str(policy)) for each in arguments]
    assert main(["data", *filled, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_is_not_written_over(many: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(UsageError, match="exists and is not an empty directory; choose another with --output DIR"):
        run_data(configured(many))
    (tmp_path / "out" / "mine").unlink()
    assert run_data(configured(many), Console(quiet=True)) == 0


def test_a_disk_that_refuses_leaves_nothing_half_written(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Any) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "dump_config", refuse)
    with pytest.raises(
        RunError, match=r"cannot write .*out: no space left on device; make it writable, or choose another"
    ):
        run_data(configured(many), Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_every_reason_has_words() -> None:
    assert tuple(MEANINGS) == LEFT_OUT


def test_the_account_tells_each_layout_and_the_columns_that_were_not_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "q", "chosen": "a", "rejected": "b", "source": "x", "model": None},
        {"question": "q2", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1},
        {"note": "neither"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("columns={prompt: question}", "on_malformed=skip")
    report = prepare(configured(tmp_path / "p.jsonl", *settings)).report
    assert report.columns == ["question, chosen, rejected", "question, response_0, response_1, better_response_id"]
    assert report.unread_columns == ["safer_response_id", "source"]
    table = pyarrow.Table.from_pylist(rows[:1])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    report = prepare(configured(tmp_path / "p.parquet", *settings)).report
    assert (report.columns, report.unread_columns) == (["question, chosen, rejected"], ["model", "source"])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.renderable())
    assert "not read  model, source" in console.export_text()
