"""One rank of a stage. A plain class that `launch/cluster/wiring.py` turns into a Ray actor."""

import importlib
from pathlib import Path
from typing import Any

from actors.errors import LEARNER_MEMORY, oom_hint, writing
from actors.hub import resolve
from learner.records import StageStats
from learner.stages.config import StageSpec
from learner.training.process import RankPlace
from learner.training.worker import RankWorker


class StageWorker(RankWorker):
    """A rank that trains on a fixed data set, with the methods of `StageTrainer`. Raises the stage's errors."""

    def __init__(self, spec: StageSpec, place: RankPlace) -> None:
        config, learner = spec.config, spec.config.learner
        super().__init__(learner, place)
        import torch

        from learner.backend.models import settle_generation
        from learner.backend.sharded import ShardedModel, join_process_group
        from learner.stages.stage import StageTrainer

        torch.manual_seed(learner.seed)
        device = join_process_group(learner)
        stage = importlib.import_module(config.stage).make_stage(config, spec.model_dir, spec.data_dir)
        tokenizer_source = resolve(config.model.tokenizer or spec.model_dir)
        settle_generation(stage.module.model, resolve(spec.model_dir), spec.ends)
        self._model = ShardedModel(
            stage.module, learner, spec.total_updates, device, tokenizer_source, spec.failed_batches_dir
        )
        self._finish = stage.finish
        self._trainer = StageTrainer(stage, self._model, config.training.batch_size, config.training.seed)

    def advance(self, updates: int) -> list[StageStats]:
        """Take the next `updates` optimizer steps."""
        with oom_hint("the learner", LEARNER_MEMORY):
            return self._trainer.advance(updates)

    def evaluate(self) -> dict[str, float]:
        """Return `loss` and metrics on the held-out examples; empty if there are none."""
        with oom_hint("the learner", LEARNER_MEMORY):
            return self._trainer.evaluate()

    def finish(self, directory: str) -> dict[str, Any]:
        """Run `Stage.finish` on rank 0. Raises RunError if `directory` cannot be written."""
        if self._finish is None or self.rank:
            return {}
        with writing(f"what belongs beside the model to {directory}", "then use --resume: the weights are whole"):
            return self._finish(Path(directory), self._model.device)
