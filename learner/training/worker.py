"""One learner rank as an actor sees it: its environment, its engine, and on rank 0 the publisher.

A plain class; `launch/cluster/wiring.py` makes a Ray actor of it for each rank and calls the methods of all ranks
together. Torch and deepspeed are imported only when an instance is made, after its environment is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.errors import LEARNER_MEMORY, RunError, saying_what_to_lower
from actors.generation.config import OpponentConfig
from actors.records import SENT_BY_LEARNER, Canary, Game, Manifest, Pair
from learner.config import LearnerConfig, PublicationConfig, TrainerConfig
from learner.records import UpdateStats

if TYPE_CHECKING:
    import numpy as np


class LearnerWorker:
    """Rank `rank` of `world_size`; all ranks are made together, because they wait for each other.

    `master_addr` and `master_port` are where the ranks meet, on rank 0's host. Other arguments are those of
    `TrainEngine` and `Publisher`. Raises UsageError or RunError as those do.
    """

    def __init__(
        self,
        learner: LearnerConfig,
        publication: PublicationConfig,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        model_dir: str,
        reference_dir: str,
        total_updates: int,
        temperature: float,
        publish_dir: str,
        failed_batches_dir: str | None = None,
        tokenizer_dir: str | None = None,
        *,
        opponent: OpponentConfig = OpponentConfig(),  # noqa: B008 (frozen)
    ) -> None:
        set_environment(learner, rank, world_size, master_addr, master_port)
        import torch

        from learner.publication.publisher import Publisher
        from learner.training.engine import TrainEngine

        # More threads than cores spin against each other, and one number of threads keeps results reproducible.
        torch.set_num_threads(max(1, int(learner.cpus_per_rank)))
        self.rank = rank
        self._transport = publication.transport
        self._sendable: dict[int, tuple[Manifest, dict[str, Any]]] = {}
        self._senders: dict[str, tuple[str, Any]] = {}
        self._canary_length = publication.canary_tokens
        self._publisher = Publisher(publication, publish_dir) if rank == 0 else None
        with saying_what_to_lower(f"learner rank {rank}", LEARNER_MEMORY):
            self._engine = TrainEngine(
                model_dir,
                learner,
                total_updates,
                temperature,
                reference_dir,
                failed_batches_dir=failed_batches_dir,
                tokenizer_dir=tokenizer_dir,
                opponent=opponent,
            )

    def ready(self) -> None:
        """Answers once the models are loaded and all ranks have met."""

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """One optimizer step on the whole batch `items`, of which this rank computes its share. Collective."""
        with saying_what_to_lower(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.update(items, measure_step)

    def export(self, version: int) -> Manifest | None:
        """Publishes the current weights as `version`; the manifest on rank 0, None elsewhere. Collective.

        With opponent kind `ema` the averaged weights go along, under names that begin with `weights.REFERENCE_PREFIX`.
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
        """Sends the publication of `version` to one generator over `nccl` or `ipc`; returns when it works with it.

        `process` is the generator's, of which each has a transfer group of its own. `generator` and `workers` are those
        of `WeightSender`. Rank 0 only. Not run on a GPU so far.
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
        """Chunks of the newest publication. Rank 0 only."""
        return self._publishing().chunk_count

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """Chunk `index` of the newest publication. Rank 0 only."""
        return self._publishing().chunk(index)

    def retire(self, version: int) -> None:
        """Frees the publication of `version`. Rank 0 only."""
        self._publishing().retire(version)
        self._sendable.pop(version, None)

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[float], list[float]]]:
        """Log-probs (nats) of each (prompt, response)'s response tokens under policy and reference. Collective."""
        with saying_what_to_lower(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.score(sequences)

    def exact_table(self) -> np.ndarray | None:
        """Next-token log-probs [16, 259, 18] (float32, nats) of the policy in the embedded world (`ExactPolicy`).

        None but on rank 0. Collective. Raises UsageError when the model's vocabulary is not the world's.
        """
        policy = self._engine.exact_policy()
        return None if policy is None else policy.token_logprobs.astype("float32")

    def save(self, stage: str, client_state: dict[str, Any] | None = None) -> None:
        """Writes this rank's part of a checkpoint into `stage`, a directory of `checkpoints.begin`. Collective."""
        self._engine.save(stage, client_state)

    def load(self, checkpoint: str) -> dict[str, Any]:
        """Continues from `checkpoint`; returns the `client_state` it was saved with. Collective."""
        return self._engine.load(checkpoint)

    def save_pretrained(self, directory: str) -> None:
        """Writes the policy as a Hugging Face model directory, whole or not at all. Collective."""
        self._engine.save_pretrained(directory)

    def close(self) -> None:
        """Removes what was published and leaves the other ranks. Collective."""
        for _, sender in self._senders.values():
            sender.close()
        if self._publisher is not None:
            self._publisher.close()
        self._engine.close()

    def _canary(self) -> Canary:
        from actors.generation.weights import canary_tokens

        tokens = canary_tokens(self._engine.vocab_size, self._canary_length)
        # Engines report log-probs of given tokens without their sampling temperature.
        ((logprobs, _),) = self._engine.score([(tokens[:1], tokens[1:])], temperature=1.0, with_reference=False)
        return Canary(tokens, tuple(logprobs))

    def _publishing(self) -> Any:
        if self._publisher is None:
            raise RunError(f"learner rank {self.rank} publishes nothing; ask rank 0")
        return self._publisher


def set_environment(config: TrainerConfig, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
    """What torch.distributed and DeepSpeed read when they are imported."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
        "LOCAL_RANK": "0",
        "OMP_NUM_THREADS": str(max(1, int(config.cpus_per_rank))),
        "DS_ACCELERATOR": "cuda" if config.gpus_per_rank > 0 else "cpu",
    }
    if config.gpus_per_rank > 0:
        import torch

        # A rank that Ray gave a GPU of its own sees only that one; otherwise the ranks of a host take turns.
        os.environ["LOCAL_RANK"] = str(rank % max(1, torch.cuda.device_count()))
