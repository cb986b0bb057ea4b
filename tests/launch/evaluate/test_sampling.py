"""Sampling and judging for the verbs that evaluate: who answers what, what a death costs, what is told."""

import asyncio

import pytest

from actors.errors import RunError
from actors.records import Failure, Group
from launch.evaluate.sampling import judged_groups, line_printer, sample
from launch.run.pools import waiting
from launch.settings.loading import load_config
from tests.fakes.generators import FakeGenerator, FakePrompts
from tests.fakes.judges import FakeJudge

PROMPTS = [FakePrompts().prompt(number) for number in range(7)]


def test_prompts_are_dealt_to_all_generators_and_answered_in_order():
    generators = [FakeGenerator("a"), FakeGenerator("b", seconds=0.01)]
    groups = asyncio.run(sample(generators, PROMPTS, print))
    assert [group.lease.prompt.id for group in groups] == [prompt.id for prompt in PROMPTS]
    assert [len(generator.answered) for generator in generators] == [4, 3]
    assert {lease.draw for generator in generators for lease in generator.answered} == {"policy"}


def test_a_generator_that_comes_back_is_given_its_prompts_again_and_a_dead_one_ends_the_evaluation():
    back = FakeGenerator("a", die_after=0)
    groups = asyncio.run(sample([back, FakeGenerator("b")], PROMPTS, print))
    assert (back.deaths, len(groups)) == (1, 7)
    with pytest.raises(RunError, match=r"a; look in \S+/ray/session_latest/logs on its host, then run again"):
        asyncio.run(sample([FakeGenerator("a", die_after=0, dead_for_good=True)], PROMPTS, print))


def test_a_generator_that_loads_for_long_is_told(monkeypatch):
    """Evaluation and comparison were silent until the first answers."""

    class Loading(FakeGenerator):
        async def ready(self):
            await asyncio.sleep(0.05)

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    said = []
    asyncio.run(sample([Loading("generator-0")], PROMPTS[:1], said.append))
    assert said[0].startswith("generator-0 has not answered for 0 s: it is still loading its model")


def test_a_prompt_that_cannot_be_generated_ends_the_evaluation():
    class Refusing(FakeGenerator):
        async def collect(self, timeout_seconds):
            return [Failure(0, 0, "too long")]

    with pytest.raises(RunError, match="prompt 'fake:0' could not be generated: too long"):
        asyncio.run(sample([Refusing("a")], PROMPTS[:1], print))


def _judged(judges: list[FakeJudge], prompts: int, **settings: int) -> list[Group]:
    config = load_config("embedded", [f"judging.{name}={value}" for name, value in settings.items()])
    sampled = asyncio.run(sample([FakeGenerator("a")], PROMPTS[:prompts], print))
    return asyncio.run(judged_groups(config, judges, sampled, print))


def test_groups_are_judged_in_batches_by_all_judges_and_come_back_in_order() -> None:
    class Counting(FakeJudge):
        def __init__(self) -> None:
            self.batches: list[int] = []

        async def judge(self, groups):  # type: ignore[no-untyped-def]
            self.batches.append(len(groups))
            return await super().judge(groups)

    judges = [Counting(), Counting()]
    found = _judged(judges, 7, max_batch_groups=2, count=2)  # type: ignore[arg-type]
    assert [group.lease.index for group in found] == list(range(7))
    assert all(group.judgement is not None for group in found)
    assert sorted(size for judge in judges for size in judge.batches) == [1, 2, 2, 2]
    assert all(judge.batches for judge in judges)


def test_a_group_that_cannot_be_judged_ends_the_evaluation() -> None:
    class Refusing(FakeJudge):
        async def judge(self, groups):  # type: ignore[no-untyped-def]
            return [Failure(group.lease.index, 0, "too long") for group in groups]

    with pytest.raises(RunError, match="3 of 3 prompts could not be judged; the first: too long"):
        _judged([Refusing()], 3)


def test_a_message_is_a_line_of_its_own_without_codes_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line_printer()("judging: [1] of 2 \x1b[2J" + "x" * 200)
    told = capsys.readouterr().err
    assert told.startswith("offbeat: judging: [1] of 2 ")
    assert told.count("\n") == 1
    assert "\x1b" not in told
