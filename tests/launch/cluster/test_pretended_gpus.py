"""Actors of every transport on a Ray with pretended GPUs, up to their first call of a device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import torch

from actors.errors import RunError
from launch.cluster import wiring
from launch.settings.run import RunConfig
from learner.publication.config import PublicationConfig
from tests.integration.runs import leaving_nothing
from tests.processes import Marked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs must be pretended"),
]

TRANSPORTS = get_args(PublicationConfig.model_fields["transport"].annotation)
OF_GPUS = ("nccl", "ipc")
"""Whole runs on CPUs show the others."""


@pytest.fixture
def eight_gpus(marked: Marked, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")  # as a run has it: no worker for each pretended core
    with leaving_nothing(marked):
        ray.init(
            address="local",
            num_cpus=16,
            num_gpus=8,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(short_dir),
        )
        yield
        ray.shutdown()


@pytest.mark.parametrize("transports", [OF_GPUS, pytest.param(TRANSPORTS, marks=pytest.mark.long)], ids=len)
def test_the_learner_s_ranks_of_a_transport_are_placed_and_reach_their_constructor(
    eight_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transports: tuple[str, ...]
) -> None:
    """Ray refused the options of `nccl` and `ipc`, and so both presets with GPUs, before any actor was there."""
    monkeypatch.setattr(wiring, "_ends", lambda *_: (1,))  # there is no model to read

    async def reason(transport: str) -> str:
        gpus = 1 if transport in OF_GPUS else 0
        settings: dict[str, Any] = {
            "model": {"path": str(tmp_path)},
            "learner": {"gpus_per_rank": 0.5 if transport == "ipc" else gpus},
            "generators": {"gpus": 0.5} if transport == "ipc" else {},
            "publication": {"transport": transport},
        }
        config = RunConfig.model_validate(settings)
        learner = wiring.start_learner(config, str(tmp_path), str(tmp_path), tmp_path / "shm", tmp_path / "failed")
        with pytest.raises(RunError) as raised:
            await learner.ready()
        return str(raised.value)

    async def reasons() -> dict[str, str]:
        return {transport: await reason(transport) for transport in transports}

    for transport, told in asyncio.run(reasons()).items():
        first_need = "NCCL" if transport in OF_GPUS else str(tmp_path)
        assert told.startswith("the learner could not start: "), told
        assert first_need in told, told
