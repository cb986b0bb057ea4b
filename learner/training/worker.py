"""One rank of the learner: its environment, its engine and, on rank 0, the publisher.

Plain classes that `launch/cluster/wiring.py` turns into Ray actors. Torch and deepspeed are imported at construction,
after the environment is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.errors import LEARNER_MEMORY, oom_hint
from actors.records import SENT_BY_LEARNER, Canary, Game, Manifest, Pair
from learner.backend.process import RankPlace, set_environment, threads
from learner.config import LearnerSpec, PublicationConfig, TrainerConfig
from learner.records import UpdateStats

if TYPE_CHECKING:
    import numpy as np

    from learner.backend.sharded import ShardedModel
    from learner.tensors.batching import TokenSequence


class RankWorker:
    """Base of the ranks of the loop and of the stages: the methods of `ShardedModel` that both need.

    Construction and all methods but `ready` are collective.
    """

    _model: ShardedModel

    def __init__(self, config: TrainerConfig, place: RankPlace) -> None:
        set_environment(config, place)
        import torch

        torch.set_num_threads(threads(config))
        self.rank = place.rank

    def ready(self) -> None:
        """Return after construction: models are loaded and all ranks have met."""

    def save(self, stage: str, client_state: dict[str, Any] | None = None) -> None:
        self._model.save(stage, client_state)

    def load(self, checkpoint: str) -> dict[str, Any]:
        return self._model.load(checkpoint)

    def save_pretrained(self, directory: str) -> None:
        self._model.save_pretrained(directory)

    def close(self) -> None:
        self._model.close()


class LearnerWorker(RankWorker):
    """A rank that trains on rollouts. Raises errors of `TrainEngine` and `Publisher`."""

    def __init__(self, spec: LearnerSpec, place: RankPlace, publication: PublicationConfig, publish_dir: str) -> None:
        super().__init__(spec.config, place)
        from learner.publication.publisher import Publisher
        from learner.training.engine import TrainEngine

        self._transport = publication.transport
        self._sendable: dict[int, tuple[Manifest, dict[str, Any]]] = {}
        self._senders: dict[str, tuple[str, Any]] = {}
        self._canary_length = publication.canary_tokens
        self._publisher: Any = Publisher(publication, publish_dir) if place.rank == 0 else None
        with oom_hint(f"learner rank {place.rank}", LEARNER_MEMORY):
            self._engine = TrainEngine(spec)
        self._model = self._engine.policy

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on `items`, the whole batch, of which this rank computes its share."""
        with oom_hint(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.update(items, measure_step)

    def export(self, version: int) -> Manifest | None:
        """Publish the current weights as `version`; return the manifest on rank 0, None elsewhere.

        With opponent kind `ema` the averaged weights are included, under names prefixed with
        `weights.REFERENCE_PREFIX`.
        """
        from actors.generation.weights import REFERENCE_PREFIX

        canary = self._canary()
        average = {f"{REFERENCE_PREFIX}{name}": tensor for name, tensor in self._engine.average_state().items()}
        state = self._engine.full_state() | average
        if self._publisher is None:
            return None
        manifest = self._publisher.publish(version, state, canary)
        if self._transport in SENT_BY_LEARNER:
            self._sendable[version] = (manifest, state)
        return manifest

    def deliver(self, name: str, process: str, generator: Any, version: int, workers: int) -> int:
        """Send the publication of `version` to one generator over `nccl` or `ipc`, and wait until it is in use.

        Each generator process has its own transfer group, rebuilt when `process` changes. `generator` and `workers` are
        those of `WeightSender`. Rank 0 only. Not yet run on a GPU.
        """
        from learner.publication.transfer import WeightSender

        manifest, state = self._sendable[version]
        known = self._senders.get(name)
        if known is None or known[0] != process:
            if known is not None:
                known[1].close()
            sender = WeightSender(self._transport, generator, workers=workers, address=os.environ["MASTER_ADDR"])
            self._senders[name] = known = (process, sender)
        known[1].send(manifest, state)
        return version

    def chunk_count(self) -> int:
        """Count the chunks of the newest publication. Rank 0 only."""
        return self._publisher.chunk_count

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """Return chunk `index` of the newest publication. Rank 0 only."""
        return self._publisher.chunk(index)

    def retire(self, version: int) -> None:
        """Free the publication of `version`. Rank 0 only."""
        self._publisher.retire(version)
        self._sendable.pop(version, None)

    def score(self, sequences: Sequence[TokenSequence]) -> list[tuple[list[float], list[float]]]:
        with oom_hint(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.policies.score(sequences)

    def close(self) -> None:
        """Remove publications and leave the process group."""
        for _, sender in self._senders.values():
            sender.close()
        if self._publisher is not None:
            self._publisher.close()
        super().close()

    def _canary(self) -> Canary:
        from actors.generation.weights import canary_tokens

        tokens = canary_tokens(self._engine.vocab_size, self._canary_length)
        # Engines score given tokens at temperature 1, whatever they sample at.
        sequence = (tokens[:1], tokens[1:])
        ((logprobs, _),) = self._engine.policies.score([sequence], temperature=1.0, with_reference=False)
        return Canary(tokens, tuple(logprobs))
