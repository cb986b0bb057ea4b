"""The adapter of a reference actor, alone; and two actors on a real Ray, one of which is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from actors.errors import RunError, UsageError
from actors.records import Failure
from launch.cluster import interchangeable, wiring
from launch.cluster.interchangeable import RayJudge, RayReference
from launch.cluster.ray_actors import RayLearner
from launch.cluster.wiring import ray_session
from launch.run.pools.reference_pool import ReferencePool
from launch.settings.run import ClusterConfig, RunConfig
from learner.reference.config import ReferenceConfig, ReferenceSpec
from learner.reference.worker import ReferenceWorker
from tests.fakes.models import tiny_llama
from tests.launch.cluster.test_ray_actors import GROUP, FakeActor

ROLLOUTS = [((1, 2), (3, 4), ()), ((1, 2), (5, 4, 3), ((1, 2),))]


def unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("restarting", None)


async def no_sleep(seconds: float) -> None: ...


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(ClusterConfig(address="local", num_cpus=3, object_store_mib=80)):
        yield


def test_a_judge_that_is_being_restarted_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its groups used to be given up after seconds, while its model took longer to load."""
    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    actor = FakeActor(judge=[unavailable(), [GROUP]], seconds=[*[unavailable()] * 50, 1.5])
    assert asyncio.run(RayJudge(actor).judge([GROUP])) == [GROUP]
    assert actor.calls.count("judge") == 2
    assert actor.calls.count("seconds") == 51


def test_groups_over_which_the_judge_dies_again_and_again_are_returned() -> None:
    actor = FakeActor(judge=unavailable(), seconds=0.0)
    assert asyncio.run(RayJudge(actor).judge([GROUP])) == [Failure(3, 1, "judge unavailable")]
    assert actor.calls.count("judge") == 3


def test_a_judge_that_died_for_good_ends_the_run() -> None:
    judge = RayJudge(FakeActor(judge=unavailable(), seconds=ActorDiedError()))
    with pytest.raises(RunError, match=r"the judge died for good.*--resume"):
        asyncio.run(judge.judge([GROUP]))


def test_the_judge_s_seconds_are_the_last_known_when_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchangeable, "ANSWER_SECONDS", 0.01)

    async def test() -> None:
        judge = RayJudge(FakeActor(seconds=[2.5, ..., ActorDiedError()]))
        assert await judge.seconds() == 2.5
        assert await judge.seconds() == 2.5
        assert await judge.seconds() == 2.5

    asyncio.run(test())


def test_what_the_judge_counted_is_the_last_known_when_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchangeable, "ANSWER_SECONDS", 0.01)

    async def test() -> None:
        judge = RayJudge(FakeActor(figures=[{"groups": 2.0}, ..., ActorDiedError()]))
        assert [await judge.figures() for _ in range(3)] == [{"groups": 2.0}] * 3

    asyncio.run(test())


def test_an_actor_that_is_being_restarted_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    actor = FakeActor(score=[unavailable(), [(-1.0,)]], ready=[*[unavailable()] * 50, None])
    assert asyncio.run(RayReference(actor).score(ROLLOUTS)) == [(-1.0,)]
    assert (actor.calls.count("score"), actor.calls.count("ready")) == (2, 51)


def test_rollouts_over_which_it_dies_again_and_again_are_given_up() -> None:
    actor = FakeActor(score=unavailable(), ready=None)
    assert asyncio.run(RayReference(actor).score(ROLLOUTS)) is None
    assert actor.calls.count("score") == 3


def test_one_that_died_for_good_is_told_and_what_its_code_raised_is_passed_on() -> None:
    with pytest.raises(RunError, match=r"the reference actor died for good: .*--resume"):
        asyncio.run(RayReference(FakeActor(score=unavailable(), ready=ActorDiedError())).score(ROLLOUTS))
    refused = RayTaskError("score", "traceback", UsageError("an empty prompt"))
    with pytest.raises(UsageError, match="an empty prompt"):
        asyncio.run(RayReference(FakeActor(score=refused)).score(ROLLOUTS))


def test_its_seconds_are_the_last_known_once_it_is_dead() -> None:
    async def test() -> list[float]:
        reference = RayReference(FakeActor(seconds=[2.5, ActorDiedError()]))
        return [await reference.seconds() for _ in range(2)]

    assert asyncio.run(test()) == [2.5, 2.5]


def test_the_learner_s_scores_are_joined_with_those_of_the_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation asks the learner for both; ranks without a reference return none of its own."""
    rank = FakeActor(score=[[([-0.5, -0.25], []), ([-0.125, -0.75], [])]])
    reference = FakeActor(score=[[(-1.0, -2.0), (-3.0, 0.0, -4.0)]])
    learner = RayLearner([rank], "shm", reference=ReferencePool([RayReference(reference)], print))
    monkeypatch.setattr(ray, "put", lambda value: value)
    assert asyncio.run(learner.score(ROLLOUTS)) == [([-0.5, -0.25], [-1.0, -2.0]), ([-0.125, -0.75], [-3.0, -4.0])]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("shared memory")
def test_actors_on_ray_score_as_one_in_this_process_and_one_that_is_killed_comes_back(
    session: None, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    tiny_llama(model, seed=0)
    config = RunConfig.model_validate(
        {
            "model": {"path": str(model)},
            "learner": {"dtype": "float32", "logprob_chunk": 7},
            "sampling": {"temperature": 0.7},
            "reference": {"count": 2, "cpus": 0.5, "max_restarts": 1},
        }
    )
    spec = ReferenceSpec(
        config=ReferenceConfig(count=1), model_dir=str(model), dtype="float32", logprob_chunk=7, temperature=0.7
    )
    expected = ReferenceWorker(spec).score(ROLLOUTS)

    async def until_it_is_gone(reference: RayReference) -> None:
        while True:  # Ray does not wait for the death that it is asked for: there may be another answer
            await reference.score(ROLLOUTS)

    async def test() -> None:
        first, second = references = wiring.start_references(config, str(model))
        pool = ReferencePool(references, print)
        await pool.ready()
        assert await asyncio.gather(*[pool.score(ROLLOUTS) for _ in range(4)]) == [expected] * 4
        process = (await first.pulse()).process
        assert process != (await second.pulse()).process
        os.kill(process, signal.SIGKILL)
        async with asyncio.timeout(120):
            assert await first.score(ROLLOUTS) == expected
            assert (await first.pulse()).process != process
            first.kill()  # its only restart is used up
            with pytest.raises(RunError, match="died for good"):
                await until_it_is_gone(first)
        assert await pool.score(ROLLOUTS) == expected
        assert await pool.seconds() > 0.0

    asyncio.run(test())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("shared memory")
def test_a_reference_that_is_not_there_is_told_in_its_own_words(session: None, tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": {"path": "unused"}, "reference": {"count": 1}})
    (reference,) = wiring.start_references(config, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"a reference actor could not start: .*nowhere"):
        asyncio.run(reference.ready())
