"""Loops around fakes: twelve updates of four prompts, unless said otherwise."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from actors.records import Lease
from actors.replay_buffer.buffer import ReplayBuffer
from launch.run.evaluation import EvaluationSet
from launch.run.loop import LoopEvents, TrainingLoop
from launch.settings.run import EvaluationConfig, RunConfig
from tests.fakes.generators import FakePrompts, group_of
from tests.fakes.judges import FakeJudge


def loop_of(generators, learner, messages=None, settings=None, keep=lambda batch: None, **replay) -> TrainingLoop:
    config = RunConfig.model_validate(
        {
            "model": {"path": "unused"},
            "updates": 12,
            "replay": {"prompts_per_update": 4, **replay},
            "checkpoints": {"every_updates": 0},
            **(settings or {}),
        }
    )

    async def no_checkpoint(loop: TrainingLoop) -> None:
        raise AssertionError("no checkpoint was asked for")

    async def on_batch(batch) -> None:
        kept = keep(batch)
        if kept is not None:
            await kept

    async def in_band(departure) -> None:
        raise AssertionError(departure.describe())

    return TrainingLoop(
        config,
        buffer=ReplayBuffer(config.replay, FakePrompts(), config.updates),
        generators=generators,
        judge=FakeJudge(),
        learner=learner,
        events=LoopEvents(
            on_update=lambda progress, values: None,
            on_watch=lambda loop: None,
            on_checkpoint=no_checkpoint,
            on_message=(messages if messages is not None else []).append,
            on_batch=on_batch,
            on_departure=in_band,
        ),
    )


async def train(loop: TrainingLoop) -> None:
    await loop.publish()
    await loop.learn()


def run(loop: TrainingLoop) -> None:
    asyncio.run(asyncio.wait_for(loop.run(train), timeout=30))


def with_evaluation(loop: TrainingLoop, every_updates: int) -> TrainingLoop:
    evaluation = EvaluationConfig(prompts=2, every_updates=every_updates)
    loop.config = loop.config.model_copy(update={"evaluation": evaluation})
    prompts = [replace(FakePrompts().prompt(i), token_ids=(1, 2, i)) for i in range(2)]
    baseline = [group_of(Lease(-1, 0, prompt, 0, 0.0), (0,), (0,)) for prompt in prompts]
    loop.evaluation_set = EvaluationSet(prompts, baseline)
    return loop


async def evaluate(loop: TrainingLoop) -> None:
    await loop.publish()
    await loop.evaluate()
