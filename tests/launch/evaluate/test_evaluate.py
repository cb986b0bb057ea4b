"""Evaluation by sampling: who answers what, how answers are judged and ranked, and what is refused."""

import pytest

from actors.errors import UsageError
from launch.cli import main
from launch.evaluate.evaluate import Request, judged, run_evaluation, threshold_of
from launch.settings.loading import load_config
from tests.launch.evaluate.cases import config, group


def test_an_answer_is_correct_from_the_threshold_on_and_votes_by_its_value():
    texts = ["5+7 #### 12", "#### 12.0", "no answer", "#### 0", "#### 1,2"]
    (solutions, (candidates,)) = judged([group(texts, (1, 1, 0, 0.1, 0.1))], [], config(), 1.0)
    assert candidates.correct == (True, True, False, False, False)
    assert candidates.answers[0] == candidates.answers[1]
    assert candidates.answers[2] is None
    assert candidates.answers[3] not in (None, candidates.answers[4])
    assert candidates.scores == ()
    assert [(each.response, each.correct, each.score) for each in solutions[:2]] == [
        ("5+7 #### 12", True, 1.0), ("#### 12.0", True, 1.0),
    ]  # fmt: skip
    assert (solutions[0].prompt_id, solutions[0].prompt) == ("row:1", "5+7=")
    lower = judged([group(texts, (1, 1, 0, 0.1, 0.1))], [], config(), 0.1)[1][0]
    assert lower.correct == (True, True, False, True, True)


def test_only_scores_of_right_and_wrong_have_a_threshold_of_their_own():
    texts, any_judge = ["a", "b"], config("judging.judge={kind: function, path: judge.py:score}")
    assert threshold_of([group(texts, (1, 0))], any_judge, None) == 1.0
    assert threshold_of([group(texts, (-3, -8))], any_judge, None) is None
    assert threshold_of([group(texts, (-3, -8))], any_judge, -5.0) == -5.0
    assert threshold_of([group(texts, (1, 0.1))], config(), None) == 1.0  # a verifier with marks for the form
    solutions, (candidates,) = judged([group(texts, (-3, -8))], [], any_judge, None)
    assert (candidates.correct, candidates.judged) == (None, (-3.0, -8.0))
    assert [each.correct for each in solutions] == [None, None]


def test_a_completion_that_was_cut_has_the_score_of_the_run_s_settings():
    cut = group(["#### 12", "#### 12"], (1, 1), finished=[True, False])
    assert judged([cut], [], config("judging.missing_eos_score=0"), 1.0)[1][0].correct == (True, False)
    assert judged([cut], [], config("judging.missing_eos_score=null"), 1.0)[1][0].correct == (True, True)


def test_other_judges_know_no_final_answers_and_scores_of_the_verifier_go_along():
    gold = load_config("embedded", [])
    solutions, (candidates,) = judged([group(["x", "y"], (1, 0))], [[(-2.0, -3.0)], [(0.5, 0.25)]], gold, 1.0)
    assert candidates.answers is None
    assert candidates.scores == ((-2.0, -3.0), (0.5, 0.25))
    assert [each.verifier_scores for each in solutions] == [(-2.0, 0.5), (-3.0, 0.25)]


def test_wrong_requests_are_refused_before_anything_starts(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "5+7=", "answer": "12"}\n')
    with pytest.raises(UsageError, match="name a model with --model DIR"):
        run_evaluation(config(), Request())
    here = config(
        f"model.path={models / 'verifier'}", f"prompts.source={tmp_path / 'rows.jsonl'}", "generators.max_model_len=48"
    )
    with pytest.raises(UsageError, match=r"--prompts 2 exceeds the 1 prompt of prompts\.source"):
        run_evaluation(here, Request(prompts=2))
    with pytest.raises(UsageError, match="0 prompts requested"):
        run_evaluation(here, Request(prompts=0))
    with pytest.raises(UsageError, match="nothing' does not exist"):
        run_evaluation(here, Request(verifiers=(str(tmp_path / "nothing"),)))


def test_the_command_passes_model_and_number_of_answers_as_settings_and_the_rest_as_asked(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "launch.evaluate.evaluate.run_evaluation", lambda config, request: calls.append((config, request)) or 0
    )
    options = [
        "--model",
        "it's",
        "--best-of",
        "16",
        "--verifier",
        "v",
        "--verifier",
        "w",
        "--rank",
        "reward",
        "--prompts",
        "5",
    ]
    assert main(["evaluate", "embedded", "seed=3", *options, "--pairs", str(tmp_path / "p.jsonl")]) == 0
    (settings, request) = calls[0]
    assert settings == load_config("embedded", ["seed=3", "model.path='it''s'", "sampling.completions_per_prompt=16"])
    assert request == Request(("v", "w"), "reward", 5, pairs=tmp_path / "p.jsonl")
    assert main(["evaluate", "embedded", "--best-of", "1"]) == 2
    assert main(["evaluate", "embedded", "--rank", "length"]) == 2
    assert main(["evaluate", "embedded"]) == 0
    assert calls[1:] == [(load_config("embedded"), Request())]
