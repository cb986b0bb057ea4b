"""Comparing models: whose answers win, what is written, and which requests are refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from actors.errors import UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.cli import main
from launch.evaluate.compare import Comparison, as_text, compare, model_of, render, run_comparison
from launch.settings.loading import load_config


def judged(index: int, scores: tuple[float, ...], preferences: tuple[tuple[float, ...], ...] | None = None) -> Group:
    completions = tuple(Completion((3, 1), (-1.0, -1.0), (0, 0), f"{index} {n}", True) for n in range(len(scores)))
    return Group(
        Lease(index, 0, Prompt(f"p:{index}", (index,), "?"), 0, 0.0), completions, Judgement(scores, preferences)
    )


def test_a_scalar_judge_s_higher_score_wins_and_a_tie_counts_half():
    """Two models, one answer each: A wins, loses, wins and ties."""
    found = compare([judged(n, pair) for n, pair in enumerate([(2, 1), (0, 1), (3, 0), (1, 1)])], ["a", "b"], None)
    (none, a_wins), (b_wins, _) = found.win_rates
    assert none is None
    assert a_wins is not None
    assert b_wins is not None
    assert (a_wins.value, b_wins.value) == (0.625, 0.375)
    assert found.rewards is not None
    assert [each.value for each in found.rewards] == [1.5, 0.75]
    assert (found.prompts, found.answers) == (4, 1)
    assert a_wins.low is not None
    assert a_wins.high is not None
    assert b_wins.low == pytest.approx(1.0 - a_wins.high)


def test_several_answers_of_each_model_meet_each_other():
    """A's answers score 3 and 1, B's 2 and 0, C's 5 and 5: A beats B in 3 of 4 meetings."""
    found = compare([judged(0, (3, 1, 2, 0, 5, 5))], ["a", "b", "c"], None)
    values = [[None if cell is None else cell.value for cell in row] for row in found.win_rates]
    assert values == [[None, 0.75, 0.0], [0.25, None, 0.0], [1.0, 1.0, None]]


def test_a_judge_of_pairs_is_asked_both_ways_round():
    """It says .9 for the first over the second, and .3 for the second over the first: (.9 + .7) / 2."""
    found = compare([judged(0, (0.0, 0.0), ((0.5, 0.9), (0.3, 0.5)))], ["a", "b"], None)
    assert found.win_rates[0][1] is not None
    assert found.win_rates[0][1].value == pytest.approx(0.8)
    assert found.win_rates[1][0] is not None
    assert found.win_rates[1][0].value == pytest.approx(0.2)


def test_a_judge_that_only_compares_has_no_mean_score():
    """Its scores are the shares .8 and .2; a preference model's own rewards, 3 and 1, are scores."""
    table = ((0.5, 0.8), (0.2, 0.5))
    compared = compare([judged(0, (0.8, 0.2), table)], ["a", "b"], None)
    assert compared.rewards is None
    assert "mean score" not in render(compared) + as_text(compared, ".html")
    assert json.loads(as_text(compared, ".json"))["rewards"] is None
    scored = compare([judged(0, (3.0, 1.0), table)], ["a", "b"], None)
    assert scored.rewards is not None
    assert "mean score" in as_text(scored, ".html")


def test_a_repeated_prompt_is_one_draw():
    groups = [judged(0, (1, 0)), judged(0, (1, 0)), judged(1, (0, 1))]
    found = compare(groups, ["a", "b"], None)
    assert found.prompts == 2
    assert found.win_rates[0][1] is not None
    assert found.win_rates[0][1].value == 0.5


@pytest.fixture
def found() -> Comparison:
    return compare([judged(n, (n % 2, 1 - n % 2)) for n in range(4)], ["runs/<a>", "runs/b"], None)


def test_the_table_names_models_by_letters_and_has_every_share(found):
    lines = render(found).splitlines()
    assert lines[0] == "4 prompts, 1 answer of each model, 95% intervals over prompts"
    assert lines[1:3] == ["A  runs/<a>", "B  runs/b"]
    assert lines[5].split()[:3] == ["A", "-", "0.500"]
    assert lines[7].startswith("mean score      0.500")


def test_the_matrix_is_written_as_json_csv_or_html(found):
    assert json.loads(as_text(found, ".json"))["win_rates"][1][0]["value"] == 0.5
    rows = list(csv.DictReader(as_text(found, ".csv").splitlines()))
    assert [(row["model"], row["against"], row["win_rate"]) for row in rows] == [
        ("runs/<a>", "runs/b", "0.5"),
        ("runs/b", "runs/<a>", "0.5"),
    ]
    page = as_text(found, ".html")
    assert "<th>runs/&lt;a&gt;</th>" in page
    assert "<a>" not in page


def test_a_run_stands_for_its_final_model(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match="is a run without a final model"):
        model_of(str(tmp_path))
    (tmp_path / "final").mkdir()
    assert model_of(str(tmp_path)) == str(tmp_path / "final")


def test_one_model_and_other_files_are_refused_before_anything_starts(tmp_path):
    config = load_config("embedded")
    with pytest.raises(UsageError, match="takes two different models"):
        run_comparison(config, ["a"], None, None)
    with pytest.raises(UsageError, match="takes two different models"):
        run_comparison(config, ["a", "a"], None, None)
    with pytest.raises(UsageError, match=r"ends in '.txt'; allowed: .json, .csv, .html"):
        run_comparison(config, ["a", "b"], None, Path("matrix.txt"))


def test_models_without_a_run_among_them_need_a_configuration(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "nothing names prompts and judge; give --config FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "answers"), [([], 1), (["--answers", "3"], 3)])
def test_each_model_answers_once_unless_more_is_asked_for(monkeypatch, given, answers):
    """The default of one answer was refused as too few completions for a run."""
    asked = []

    def comparison(config, *_):
        asked.append(config.sampling.completions_per_prompt)
        return 0

    monkeypatch.setattr("launch.evaluate.compare.run_comparison", comparison)
    assert main(["compare", "a", "b", "--config", "embedded", *given]) == 0
    assert asked == [answers]


def test_every_model_answers_and_one_judge_sees_all_answers_to_a_prompt_in_the_models_order(
    tmp_path, monkeypatch, capsys
):
    """Engines and judge are left out: each model's answer is its path, and the second model's are better."""
    from launch.evaluate import compare as module

    shown: list[tuple[str, ...]] = []

    def answers(config, prompts, say):
        text = config.model.path
        one = Completion((3, 1), (-1.0, -1.0), (0, 0), text, True)
        return [Group(Lease(n, 0, prompt, 0, 0.0), (one,)) for n, prompt in enumerate(prompts)]

    def judge(config, groups, say):
        shown.extend(tuple(each.text for each in group.completions) for group in groups)
        return [Group(group.lease, group.completions, Judgement((0.0, 1.0))) for group in groups]

    questions = [Prompt(f"p:{n}", (n,), "?") for n in range(3)]
    monkeypatch.setattr(module, "load_tokenizer", lambda path, chats: path)
    monkeypatch.setattr(module, "checked_prompts", lambda config, tokenizer, wanted, say, meet: questions[:wanted])
    monkeypatch.setattr(module, "_answers", answers)
    monkeypatch.setattr(module, "_judged", judge)
    names = []
    for name in ("a", "b"):
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
        names.append(str(tmp_path / name))
    config = load_config("embedded", ["prompts.source=instructions", "judging.judge={kind: function, path: 'a:b'}"])
    output = tmp_path / "matrix.json"
    assert run_comparison(config, names, 2, output) == 0
    assert shown == [(f"{names[0]}/final", f"{names[1]}/final")] * 2
    assert json.loads(output.read_text())["win_rates"][1][0]["value"] == 1.0
    assert "2 prompts, 1 answer of each model" in capsys.readouterr().out


def test_columns_are_as_wide_as_their_cells():
    """Two intervals of negative scores stood without a space between them."""
    wide = [judged(n, (-1234.5 - n, -2345.25 + n)) for n in range(3)]
    rows = [line for line in render(compare(wide, ["a", "b"], None)).splitlines() if line.startswith("mean score")]
    assert re.fullmatch(r"mean score +-\d+\.\d+ \[[^]]+\]  +-\d+\.\d+ \[[^]]+\]", rows[0])
