"""Generator actors on a real Ray whose engines fail to start: at first, and when they are restarted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.errors import UsageError
from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.remote import RemoteGenerator
from launch.cluster import ray_actors
from launch.cluster.ray_actors import RayGenerator
from launch.cluster.wiring import ray_session
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError
from launch.settings.run import ClusterConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("shared memory")]
BUSY = "Free memory on device 0 is less than desired GPU memory utilization"


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(ClusterConfig(address="local", num_cpus=2, object_store_mib=80)):
        yield


@pytest.fixture
def start(session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], RayGenerator]:
    """Starts a generator with two restarts, whose starts of these numbers fail, by a signal if they are negative."""
    monkeypatch.setattr(ray_actors, "START_PAUSE_SECONDS", 0.1)
    count, seeds = tmp_path / "starts", tmp_path / "seeds"
    count.touch()
    (tmp_path / "config.json").write_text("{}")  # what makes a directory a model's
    spec = GeneratorSpec(model_dir=str(tmp_path), generators=GeneratorConfig(gpus=0.5), sampling=SamplingConfig())

    def started(failing: set[int]) -> RayGenerator:
        def make_engine(spec: GeneratorSpec) -> Any:
            with seeds.open("a") as lines:
                lines.write(f"{spec.engine_seed}\n")
            with count.open("ab", buffering=0) as starts:
                starts.write(b".")
            if count.stat().st_size in failing:
                raise UsageError(BUSY)
            if -count.stat().st_size in failing:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does for want of memory
            return _Engine()

        class _Engine:
            version, failure, busy = 0, None, False

        environment = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        actor = ray.remote(RemoteGenerator).options(
            num_cpus=0, max_restarts=2, max_concurrency=4, runtime_env=environment
        )
        return RayGenerator("generator-0", actor.remote(spec, make_engine=make_engine))

    return started


async def _tries(generator: RayGenerator) -> list[str]:
    """What the pool does: wait until it is ready, again after each failure. Returns the reasons of the failures."""
    reasons: list[str] = []
    while True:
        try:
            async with asyncio.timeout(60):
                await generator.ready()
            return reasons
        except GeneratorUnavailableError as error:
            reasons.append(str(error))


def test_a_restart_that_fails_for_a_passing_reason_is_tried_again(start: Any, tmp_path: Path) -> None:
    """A constructor that raised once ended the generator for good, with restarts left."""

    async def test() -> None:
        generator = start({2})
        assert await _tries(generator) == []
        generator.kill()
        await asyncio.sleep(1.0)  # until the old process no longer answers
        (reason,) = await _tries(generator)
        assert reason == f"generator-0 (its engine did not start again: {BUSY})"
        await generator.status()

    asyncio.run(test())
    seeds = (tmp_path / "seeds").read_text().split()
    assert len(set(seeds)) == 3, "a life draws the random numbers of another"


def test_a_generator_that_never_starts_again_ends_with_the_reason_when_its_restarts_are_used_up(start: Any) -> None:
    async def test() -> None:
        generator = start({2, 3})
        assert await _tries(generator) == []
        generator.kill()
        await asyncio.sleep(1.0)
        with pytest.raises(GeneratorDeadError, match=BUSY):
            await _tries(generator)

    asyncio.run(test())


def test_a_process_that_dies_while_it_loads_is_reported_at_its_first_start_and_at_a_restart(start: Any) -> None:
    async def test() -> None:
        generator = start({-1, -3})
        assert await _tries(generator) == ["generator-0 (while it loaded its engine)"]
        generator.kill()
        await asyncio.sleep(1.0)
        with pytest.raises(GeneratorDeadError):  # its third death, and it may be restarted twice
            await _tries(generator)

    asyncio.run(test())


def test_a_first_start_that_fails_is_final_at_once(start: Any) -> None:
    """Its settings are wrong: trying again would only hide that."""

    async def test() -> None:
        with pytest.raises(GeneratorDeadError, match=BUSY):
            await _tries(start({1}))

    asyncio.run(test())
