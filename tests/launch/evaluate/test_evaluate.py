"""Evaluation by sampling: who answers what, how answers are judged and ranked, and what is refused."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.errors import RunError, UsageError
from actors.records import Completion, Failure, Group, Judgement, Lease, Prompt
from launch.cli import main
from launch.evaluate.evaluate import Request, find_verifier, judged, run_evaluation, sample, threshold_of
from launch.settings.loading import load_config
from learner.backend import manifest
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model
from tests.fakes.generators import FakeGenerator, FakePrompts

PROMPTS = [FakePrompts().prompt(number) for number in range(7)]


def test_prompts_are_dealt_to_all_generators_and_answered_in_order():
    generators = [FakeGenerator("a"), FakeGenerator("b", seconds=0.01)]
    groups = asyncio.run(sample(generators, PROMPTS))
    assert [group.lease.prompt.id for group in groups] == [prompt.id for prompt in PROMPTS]
    assert [len(generator.answered) for generator in generators] == [4, 3]
    assert {lease.draw for generator in generators for lease in generator.answered} == {"policy"}


def test_a_generator_that_comes_back_is_given_its_prompts_again_and_a_dead_one_ends_the_evaluation():
    back = FakeGenerator("a", die_after=0)
    groups = asyncio.run(sample([back, FakeGenerator("b")], PROMPTS))
    assert (back.deaths, len(groups)) == (1, 7)
    with pytest.raises(RunError, match="a; see its log"):
        asyncio.run(sample([FakeGenerator("a", die_after=0, dead_for_good=True)], PROMPTS))


def test_a_prompt_that_cannot_be_generated_ends_the_evaluation():
    class Refusing(FakeGenerator):
        async def collect(self, timeout_seconds):
            return [Failure(0, 0, "too long")]

    with pytest.raises(RunError, match="prompt 'fake:0' could not be generated: too long"):
        asyncio.run(sample([Refusing("a")], PROMPTS[:1]))


def group(texts, scores, finished=True, answer="12"):
    ends = [finished] * len(texts) if isinstance(finished, bool) else finished
    completions = tuple(
        Completion((3 + number, 1), (-1.0, -1.0), (0, 0), text, end)
        for number, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    prompt = Prompt("row:1", (1, 2), "5+7=", answer)
    return Group(Lease(0, 0, prompt, 0, 0.0), completions, Judgement(tuple(scores)))


def config(*overrides):
    return load_config("embedded", ["prompts.answer_field=answer", "judging.judge={kind: verifier}", *overrides])


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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("verifier", "reference")):
        size = ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=64, seed=seed)
        make_model(path / name, ["5+7=12"], size)
    record = {"reference": str(path / "reference"), "kind": "dpo", "beta": 0.2, "label_smoothing": 0.0}
    (path / "verifier" / "dpo.json").write_text(json.dumps(record))
    return path


def slow_logprob(directory, prompt, response):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    ids = torch.tensor([*prompt, *response])
    with torch.no_grad():
        logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


@pytest.mark.parametrize("damaged", ["verifier", "reference"])
def test_a_damaged_verifier_or_reference_is_refused(models, tmp_path, damaged):
    for name in ("verifier", "reference"):
        shutil.copytree(models / name, tmp_path / name)
    record = json.loads((tmp_path / "verifier" / "dpo.json").read_text()) | {"reference": str(tmp_path / "reference")}
    (tmp_path / "verifier" / "dpo.json").write_text(json.dumps(record))
    manifest.seal(tmp_path / damaged)
    weights = bytearray((tmp_path / damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / damaged / "model.safetensors").write_bytes(weights)
    with pytest.raises(UsageError, match=rf"{damaged} is not as it was written: model\.safetensors has other content"):
        find_verifier(str(tmp_path / "verifier"), "reward")


def test_a_verifier_ranks_by_its_log_likelihood_or_by_its_reward_against_its_reference(models):
    both = [group(["a", "b"], (1, 0)), replace(group(["a", "b", "c"], (1, 0, 0)))]
    settings = config("generators.dtype=float32")
    ours, theirs = (
        [[slow_logprob(models / name, (1, 2), c.token_ids) for c in each.completions] for each in both]
        for name in ("verifier", "reference")
    )
    likelihoods = find_verifier(str(models / "verifier"), "likelihood").scores(both, settings)
    rewards = find_verifier(str(models / "verifier"), "reward").scores(both, settings)
    for number in range(2):
        assert likelihoods[number] == pytest.approx(ours[number], abs=1e-4)
        expected = [0.2 * (mine - other) for mine, other in zip(ours[number], theirs[number], strict=True)]
        assert rewards[number] == pytest.approx(expected, abs=1e-4)
    assert abs(rewards[0][0]) > 1e-3


def test_rewards_need_a_verifier_that_tells_its_reference(models):
    with pytest.raises(UsageError, match=r"reference/dpo\.json does not hold them .*or --rank likelihood"):
        find_verifier(str(models / "reference"), "reward")


def test_wrong_requests_are_refused_before_anything_starts(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "5+7=", "answer": "12"}\n')
    with pytest.raises(UsageError, match="name a model with --model DIR"):
        run_evaluation(config(), Request())
    here = config(
        f"model.path={models / 'verifier'}", f"prompts.source={tmp_path / 'rows.jsonl'}", "generators.max_model_len=48"
    )
    with pytest.raises(UsageError, match=r"--prompts 2 exceeds the 1 prompts of prompts\.source"):
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
