"""The real training loop for benchmarks: a generator, a judge and the learner on a Ray of their own, and one loop.

A loop has everything that a run has between its first publication and its last update: admission, buffer, judge, weight
sync, staleness bound. It writes no journal, metrics or checkpoints.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from actors.records import Group, Prompt
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from launch.cluster import wiring
from launch.output.run_directory import SharedMemory
from launch.run.evaluation import EvaluationSet
from launch.run.loop import LoopEvents, TrainingLoop
from launch.run.progress import Consumed
from launch.run.win_rate import Reward
from launch.settings.run import RunConfig

ELSEWHERE = 10_000
"""Position of the first prompt that is sampled for `Actors.alone`."""


class Prompts(Protocol):
    """Source of prompts."""

    def prompt(self, position: int) -> Prompt: ...


class FixedPrompts:
    """Given token ids, in turn."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = prompts

    def prompt(self, position: int) -> Prompt:
        return Prompt(f"fixed:{position}", tuple(self._prompts[position % len(self._prompts)]), "")


@contextmanager
def started(config: RunConfig, model_dir: str, prompts: Prompts) -> Iterator[Actors]:
    """Start Ray and the actors, which end with it."""
    shared_memory = SharedMemory(Path(model_dir))
    try:
        with wiring.ray_session(config.cluster):
            yield Actors(config, model_dir, prompts, shared_memory.path)
    finally:
        shared_memory.close()


@dataclass(frozen=True)
class Loop:
    """Times and counts of one training loop."""

    started: float
    """time.monotonic() before the first publication."""
    stamps: Sequence[float]  # time.monotonic() at the end of each update, its publication included
    staleness: dict[str, int]  # groups by age in versions
    learner_seconds: dict[str, float]  # by what the learner did
    scores: Sequence[float]  # the judge's mean of each update's batch
    tokens: Sequence[float]  # per completion, mean of each update's batch
    reward: Reward | None  # of the last policy, if the loop evaluated

    def update_seconds(self, first: int, count: int) -> list[float]:
        """Seconds of `count` updates after the first `first`."""
        stamps = self.stamps[first - 1 : first + count]
        return [end - begin for begin, end in pairwise(stamps)]

    def rate(self, groups: int, first: int) -> float:
        """Groups per second over all updates but the first `first`, `groups` in each."""
        return groups * (len(self.stamps) - first) / (self.stamps[-1] - self.stamps[first - 1])


class Actors:
    """The actors of `config`, for one loop: an engine takes no version that is older than its own.

    Args:
        config: the run.
        model_dir: the policy, its tokenizer and the reference.
        prompts: what the loop trains on, from the first.
        shared_memory: a folder in memory for publications.
    """

    def __init__(self, config: RunConfig, model_dir: str, prompts: Prompts, shared_memory: Path) -> None:
        self._config, self._prompts = config, prompts
        self._judge = wiring.start_judges(config, model_dir)[0]
        self._learner = wiring.start_learner(config, model_dir, model_dir, shared_memory, shared_memory)
        self._generators = wiring.start_generators(config, model_dir, model_dir)

    async def ready(self) -> None:
        await asyncio.gather(self._learner.ready(), self._judge.ready(), *(each.ready() for each in self._generators))

    async def train(self, evaluation: Sequence[Prompt] = ()) -> Loop:
        """Run the loop; judge completions of `evaluation` before its first and after its last update."""
        stamps: list[float] = []
        values: list[Any] = []

        def on_update(progress: Any, metrics: Any) -> None:
            stamps.append(time.monotonic())
            values.append(metrics)

        loop, started = self._loop(on_update), 0.0

        async def main(loop: TrainingLoop) -> None:
            nonlocal started
            started = time.monotonic()
            await loop.publish()
            await loop.pool.acknowledged(0)
            if evaluation:
                loop.evaluation_set = EvaluationSet(evaluation, await loop.sample(evaluation))
                started = time.monotonic()
            await loop.learn()
            if evaluation:
                await loop.evaluate()

        await loop.run(main)
        return Loop(
            started=started,
            stamps=stamps,
            staleness={str(age): count for age, count in sorted(loop.progress.staleness.items())},
            learner_seconds={name: round(spent, 3) for name, spent in loop.progress.clock.seconds.items()},
            scores=[metrics["score_mean"] for metrics in values],
            tokens=[metrics["completion_tokens_mean"] for metrics in values],
            reward=loop.progress.reward,
        )

    async def alone(self, updates: int) -> dict[str, float]:
        """Groups per second of generation with the learner idle, then of learning on what it made, generators idle.

        Each over as many groups as `updates` take, after one batch that is not timed.
        """
        loop, count = self._loop(lambda progress, metrics: None), self._config.replay.prompts_per_update
        results: dict[str, float] = {}

        async def main(loop: TrainingLoop) -> None:
            await loop.publish()
            await loop.pool.acknowledged(0)
            prompts = [self._prompts.prompt(ELSEWHERE + place) for place in range(count * (updates + 1))]
            await loop.pool.sample(prompts[:count], min_version=0, draw="all")
            started = time.monotonic()
            groups: Sequence[Any] = await loop.pool.sample(prompts[count:], min_version=0, draw="all")
            results["generation"] = len(groups) / (time.monotonic() - started)
            batches = [await self._items(groups[place : place + count]) for place in range(0, len(groups), count)]
            await self._learner.update(batches[0])
            started = time.monotonic()
            for items in batches:
                await self._learner.update(items)
            results["learning"] = len(groups) / (time.monotonic() - started)

        # Leases for training would keep the generator busy: none is granted while the loop itself does not learn.
        loop.buffer.grant = lambda limit, now: []  # type: ignore[method-assign]
        await loop.run(main)
        return results

    async def _items(self, groups: Sequence[Group]) -> Any:
        """The pairs or games of a batch that was just sampled."""
        judged = await self._judge.judge(groups)
        batch = Batch(0, 0, tuple(judged), (0,) * len(judged))  # type: ignore[arg-type]
        return Consumed.of(batch, self._config).items

    def _loop(self, on_update: Callable[[Any, Any], None]) -> TrainingLoop:
        async def no_checkpoint(loop: TrainingLoop) -> None:
            raise AssertionError("no checkpoint is due")

        return TrainingLoop(
            self._config,
            buffer=ReplayBuffer(self._config.replay, self._prompts, self._config.updates),
            generators=self._generators,
            judge=self._judge,
            learner=self._learner,
            events=LoopEvents(
                on_update=on_update, on_watch=lambda loop: None, on_checkpoint=no_checkpoint, on_message=_say
            ),
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
