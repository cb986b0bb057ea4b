"""One rank of a stage before the loop. `launch/cluster/wiring.py` makes a Ray actor of it for each rank.

A plain class. Torch and deepspeed are imported only when an instance is made, after its environment is set.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from actors.errors import LEARNER_MEMORY, RunError, saying_what_to_lower
from actors.hub import resolve
from learner.records import StageStats
from learner.stages.config import StageConfig
from learner.training.worker import set_environment


class StageWorker:
    """Rank `rank` of `world_size`; all ranks are made together, because they wait for each other.

    `model_dir` holds the model to start from and its tokenizer, `data_dir` the tokenised examples; the schedule has
    `total_updates` steps. Every method but `ready` is collective. Raises UsageError or RunError as the stage does.
    """

    def __init__(
        self,
        config: StageConfig,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        model_dir: str,
        data_dir: str,
        total_updates: int,
        failed_batches_dir: str,
    ) -> None:
        learner = config.learner
        set_environment(learner, rank, world_size, master_addr, master_port)
        import torch

        from learner.backend.sharded import ShardedModel, join_process_group
        from learner.training.trainer import StageTrainer

        torch.set_num_threads(max(1, int(learner.cpus_per_rank)))
        torch.manual_seed(learner.seed)
        device = join_process_group(learner)
        stage = importlib.import_module(config.stage).make_stage(config, model_dir, data_dir)
        tokenizer_source = resolve(config.model.tokenizer or model_dir)
        self._policy = ShardedModel(
            stage.module, stage.model, learner, total_updates, device, tokenizer_source, failed_batches_dir
        )
        training = config.training
        self._trainer = StageTrainer(stage, self._policy, training.batch_size, training.seed)

    def ready(self) -> None:
        """Answers once the model is loaded and all ranks have met."""

    def advance(self, updates: int) -> list[StageStats]:
        """The next `updates` optimizer steps."""
        with saying_what_to_lower("the learner", LEARNER_MEMORY):
            return self._trainer.advance(updates)

    def evaluate(self) -> dict[str, float]:
        """`loss` and metrics on the held-out examples; empty where there are none."""
        with saying_what_to_lower("the learner", LEARNER_MEMORY):
            return self._trainer.evaluate()

    def save(self, stage: str, client_state: dict[str, Any] | None = None) -> None:
        """Writes this rank's part of a checkpoint into `stage`, a directory of `checkpoints.begin`."""
        self._policy.save(stage, client_state)

    def load(self, checkpoint: str) -> dict[str, Any]:
        """Continues from `checkpoint`; returns the `client_state` it was saved with."""
        return self._policy.load(checkpoint)

    def save_pretrained(self, directory: str) -> None:
        """Writes the model as a Hugging Face directory, whole or not at all."""
        self._policy.save_pretrained(directory)

    def finish(self, directory: str) -> dict[str, Any]:
        """What the stage adds to the model that was written to `directory`; rank 0 returns what the summary tells.

        Raises RunError when the disk refuses.
        """
        try:
            return self._trainer.finish(Path(directory))
        except OSError as error:
            raise RunError(f"cannot write to {directory}: {error}; the weights in it are whole") from error

    def close(self) -> None:
        """Leaves the other ranks."""
        self._policy.close()
