"""Ensembles: weighted means by hand, members that fail, what their configuration refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EnsembleJudgeConfig, JudgingConfig
from actors.judges.ensemble import EnsembleJudge
from actors.judges.factory import make_judge
from actors.judges.worker import JudgeWorker
from actors.records import Failure, Group, Judgement
from actors.replay_buffer.pairing import game_of
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from tests.fakes.generators import make_group
from tests.fakes.judges import FakeServer, ScriptedJudge

VERIFIER = {"judge": {"kind": "verifier"}}
FUNCTION = {"judge": {"kind": "function", "path": "m:f"}}
GROUPS = [make_group(["x", "y"], index=index) for index in range(2)]
TABLE = ((0.5, 0.9), (0.1, 0.5))


def ensemble(*scripts: Any, weights: Sequence[float] | None = None) -> EnsembleJudge:
    """Members 1_verifier, 2_function, ... that answer as their scripts say."""
    kinds = [VERIFIER, FUNCTION, FUNCTION]
    members = [{**kind, "weight": weight} for kind, weight in zip(kinds, weights or [1.0] * len(scripts), strict=False)]
    config = EnsembleJudgeConfig.model_validate({"members": members})
    return EnsembleJudge(config, [ScriptedJudge(script) for script in scripts])


def says(*judgements: Judgement | OffbeatError) -> Any:
    return lambda call, groups: list(judgements)


def judged(judge: EnsembleJudge, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
    return list(asyncio.run(judge.judge(groups)))


def test_scores_and_preferences_are_means_by_normalised_weight() -> None:
    judge = ensemble(says(Judgement((1.0, 0.0))), says(Judgement((0.9, 0.1), TABLE)), weights=(1.0, 3.0))
    (judgement,) = judged(judge, GROUPS[:1])
    assert isinstance(judgement, Judgement)
    assert judgement.scores == pytest.approx((0.25 * 1.0 + 0.75 * 0.9, 0.25 * 0.0 + 0.75 * 0.1))
    # Bradley and Terry's P(x > y) of the scores 1 and 0 is 1 / (1 + exp(-1)) = 0.7310585786.
    assert judgement.preferences is not None
    assert judgement.preferences[0][1] == pytest.approx(0.25 * 0.7310585786 + 0.75 * 0.9)
    assert judgement.preferences[1][0] == pytest.approx(0.25 * 0.2689414214 + 0.75 * 0.1)
    assert judgement.preferences[0][0] == judgement.preferences[1][1] == 0.5


def test_its_judgements_make_games() -> None:
    judge = ensemble(says(Judgement((300.0, -300.0))), says(Judgement((0.9, 0.1), TABLE)), says(Judgement((0.0, 0.0))))
    (judgement,) = judged(judge, GROUPS[:1])
    assert isinstance(judgement, Judgement)
    group = make_group(["x", "y"], judgement=judgement)
    assert game_of(group, None).preferences[0][1] == pytest.approx((1.0 + 0.9 + 0.5) / 3)


def test_a_member_that_cannot_judge_a_group_fails_that_group_by_its_name() -> None:
    fine = says(Judgement((1.0, 0.0)), Judgement((1.0, 0.0)))
    judge = ensemble(fine, says(RunError("no answer"), Judgement((0.0, 1.0))))
    failed, judgement = judged(judge, GROUPS)
    assert str(failed) == "judge 2_function of the ensemble: no answer"
    assert isinstance(judgement, Judgement)
    assert judgement.scores == (0.5, 0.5)


@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [
        (ValueError("broken"), RunError, "judge 2_function of the ensemble: raised ValueError: broken"),
        (RunError("down"), RunError, "judge 2_function of the ensemble: down"),
        (UsageError("no gold"), UsageError, "judge 2_function of the ensemble: no gold"),
    ],
)
def test_a_member_that_raises_fails_the_batch_by_its_name(raised: Any, kind: Any, reason: str) -> None:
    judge = ensemble(says(Judgement((1.0, 0.0))), lambda call, groups: raised)
    with pytest.raises(kind) as failure:
        judged(judge, GROUPS[:1])
    assert str(failure.value) == reason


def test_a_members_nonsense_is_its_own() -> None:
    judge = ensemble(says(Judgement((1.0, 0.0))), says(Judgement((float("nan"), 0.0))))
    with pytest.raises(RunError, match="judge 2_function of the ensemble: the judge gave a score that is NaN"):
        judged(judge, GROUPS[:1])


def test_a_group_that_one_member_fails_is_not_judged_by_the_others_alone() -> None:
    def script(call: int, groups: Sequence[Group]) -> Any:
        if any(group.lease.index == 1 for group in groups):
            return ValueError("broken")
        return [Judgement((0.0, 1.0))] * len(groups)

    judge = ensemble(lambda call, groups: [Judgement((1.0, 0.0))] * len(groups), script)
    results = asyncio.run(JudgeWorker(JudgingConfig(retries=0), judge=judge).judge(GROUPS))
    assert isinstance(results[0], Group)
    assert results[1] == Failure(1, 0, "judge 2_function of the ensemble: raised ValueError: broken")


def test_a_verifier_and_a_language_model_judge_together_and_are_counted_apart(tmp_path: Path) -> None:
    def first_wins(n: int, body: Any) -> Any:
        text = body["messages"][0]["content"]
        letter = "A" if text.index("#### 72") < text.index("#### 73") else "B"
        return 200, {}, {"choices": [{"message": {"content": letter}}], "usage": {"prompt_tokens": 9}}

    with FakeServer(first_wins) as server:
        endpoint = {"kind": "endpoint", "url": server.url, "model": "m", "request_retries": 0}
        judge = {"kind": "ensemble", "members": [VERIFIER | {"weight": 3.0}, {"judge": endpoint}]}
        worker = JudgeWorker(JudgingConfig.model_validate({"judge": judge}))
        (result,) = asyncio.run(worker.judge([make_group(["#### 72", "#### 73"], answer="72")]))
    assert isinstance(result, Group)
    assert result.judgement is not None
    assert result.judgement.scores == (1.0, 0.0)
    assert result.judgement.preferences is not None
    assert result.judgement.preferences[0][1] == pytest.approx(0.75 * 0.7310585786 + 0.25 * 1.0)
    figures = asyncio.run(worker.figures())
    assert figures["2_endpoint.requests"] == 2
    assert figures["2_endpoint.tokens_in"] == 18
    assert figures["groups"] == 1


def test_members_are_made_of_their_configurations() -> None:
    config = EnsembleJudgeConfig.model_validate({"members": [VERIFIER, VERIFIER | {"weight": 0.5}]})
    judge = make_judge(config)
    assert isinstance(judge, EnsembleJudge)
    (judgement,) = judged(judge, [make_group(["#### 1", "#### 2"], answer="2")])
    assert isinstance(judgement, Judgement)
    assert judgement.scores == (0.0, 1.0)


# Its configuration.


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([VERIFIER], "given 1; allowed: 2 or more; add some"),
        (
            [VERIFIER, {"judge": {"kind": "ensemble", "members": []}}],
            r"member 2\.judge: given 'ensemble'; allowed: 'gold'",
        ),
        ([VERIFIER, VERIFIER | {"weight": 0.0}], r"member 2\.weight: it should be greater than 0"),
        ([{"judge": {"kind": "function"}}, VERIFIER], r"member 1\.judge\.function\.path: missing; add it"),
        ([VERIFIER, {**VERIFIER, "wieght": 2}], r"member 2\.wieght: no such setting here; remove it"),
        ("verifier", "members: it should be a valid tuple"),
    ],
)
def test_a_mistake_names_its_member(members: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EnsembleJudgeConfig.model_validate({"members": members})


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for judge in (
        "{kind: endpoint, url: 'http://h', model: m, api_key_env: sk-secret}",
        "{kind: ensemble, members: [{judge: {kind: verifier}}, {judge: {kind: endpoint, url: 'http://h', model: m, "
        "api_key_env: sk-secret}}]}",
    ):
        path.write_text(f"model: {{path: m}}\nprompts: {{answer_field: a}}\njudging: {{judge: {judge}}}\n")
        with pytest.raises(UsageError, match="must be the NAME of an environment variable") as refused:
            load_config(path)
        assert "sk-secret" not in str(refused.value)


def test_members_share_one_gpu() -> None:
    def config(*gpus: float) -> JudgingConfig:
        members = [{"judge": {"kind": "reward_model", "path": "m", "gpus": each}} for each in gpus]
        return JudgingConfig.model_validate({"judge": {"kind": "ensemble", "members": members}})

    assert config(0.5, 0.25).gpus == 0.75
    with pytest.raises(ValidationError, match=r"add up to 1\.5, but all members share one GPU"):
        config(1.0, 0.5)


def test_a_verifier_among_the_members_needs_gold_answers() -> None:
    judging = {"judge": {"kind": "ensemble", "members": [VERIFIER, FUNCTION]}}
    with pytest.raises(ValidationError, match=r"prompts\.answer_field is unset"):
        RunConfig.model_validate({"model": {"path": "m"}, "judging": judging})
    RunConfig.model_validate({"model": {"path": "m"}, "judging": judging, "prompts": {"answer_field": "answer"}})


def test_its_configuration_is_written_out_and_read_back(tmp_path: Path) -> None:
    from launch.settings.loading import dump_config

    judging = {"judge": {"kind": "ensemble", "members": [VERIFIER, FUNCTION | {"weight": 2.0}]}}
    config = RunConfig.model_validate(
        {"model": {"path": "m"}, "judging": judging, "prompts": {"answer_field": "answer"}}
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
