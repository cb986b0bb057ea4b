"""One rank of the learner: its environment, its engine and, on rank 0, the publisher.

Plain classes that `launch/cluster/wiring.py` turns into Ray actors. Torch and deepspeed are imported at construction,
after the environment is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from actors.errors import LEARNER_MEMORY, oom_hint
from actors.foreign.imports import gc_paused
from actors.records import Canary, Completion, Game, Manifest, Pair, Pulse, Seat
from learner.config import LearnerSpec, TrainerConfig
from learner.publication.config import PublicationConfig
from learner.records import UpdateStats
from learner.training.process import RankPlace, set_environment, threads

FRESH_TOKENS = 128
"""Most tokens of a rollout that engines score at each version."""

if TYPE_CHECKING:
    import numpy as np

    from learner.backend.sharded import ShardedModel
    from learner.tensors.batching import AnySequence, TokenSequence


class RankWorker:
    """Base of the ranks of the loop and of the stages: the methods of `ShardedModel` that both need.

    Construction and all methods but `ready` and `pulse` are collective.
    """

    _model: ShardedModel

    def __init__(self, config: TrainerConfig, place: RankPlace) -> None:
        set_environment(config, place)
        with gc_paused():
            import torch

            from learner.backend import sharded  # noqa: F401 - and with it DeepSpeed and transformers

        torch.set_num_threads(threads(config))
        self.rank = place.rank

    def ready(self) -> None:
        """Return after construction: models are loaded and all ranks have met."""
        self._use_device()

    def pulse(self) -> Pulse:
        """Return a sign of life; not collective, in a thread of its own."""
        return Pulse.of_this_process()

    def save(self, stage: str, client_state: dict[str, Any] | None = None) -> None:
        self._model.save(stage, client_state)

    def load(self, checkpoint: str) -> dict[str, Any]:
        return self._model.load(checkpoint)

    def save_pretrained(self, directory: str) -> None:
        self._model.save_pretrained(directory)

    def _use_device(self) -> None:
        """Select this rank's GPU for the calling thread: the constructor may have run in another one."""
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)

    def close(self) -> None:
        self._model.close()


class LearnerWorker(RankWorker):
    """A rank that trains on rollouts. Raises errors of `TrainEngine` and `Publisher`."""

    def __init__(self, spec: LearnerSpec, place: RankPlace, publication: PublicationConfig, publish_dir: str) -> None:
        super().__init__(spec.config, place)
        from learner.publication.publisher import Publisher
        from learner.training.engine import TrainEngine

        self._canary: TokenSequence | None = None  # a prompt and an answer of the policy's, from its first version
        self._fresh: TokenSequence | None = None  # one that was trained on last
        with oom_hint(f"learner rank {place.rank}", LEARNER_MEMORY):
            self._engine = TrainEngine(spec)
        self._model = self._engine.policy
        self._publisher: Any = None
        if place.rank == 0:
            sharded = spec.config.zero_stage == 3 and spec.config.ranks > 1
            self._publisher = Publisher(publication, publish_dir, self._model.device, sharded=sharded)

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on `items`, the whole batch, of which this rank computes its share."""
        self._fresh = rollout_of(items)
        with oom_hint(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.update(items, measure_step)

    def export(self, version: int) -> Manifest | None:
        """Publish the current weights as `version`; return the manifest on rank 0, None elsewhere.

        They are those of `TrainEngine.weights`.
        """
        canary, *fresh = self._canaries()
        weights = self._engine.weights()
        try:
            if self._publisher is None:
                return None
            return self._publisher.publish(version, self._engine.outline, canary, weights, fresh[0] if fresh else None)
        finally:
            for _ in weights:  # the other ranks gather every part with this one, whatever failed
                pass

    def adopt_average(self) -> None:
        """Call `TrainEngine.adopt_average`."""
        self._engine.adopt_average()

    # The next four serve generators beside an update, in threads of their own. Rank 0 only.

    def open_group(self, size: int, seconds: float) -> Seat:
        """Call `BroadcastSender.open_group`."""
        return self._publisher.sender.open_group(size, seconds)

    def send(self, manifest: Manifest, seat: Seat) -> None:
        """Call `BroadcastSender.send`."""
        self._publisher.sender.send(manifest, seat)

    def give_up(self, seat: Seat, reason: str) -> None:
        """Call `BroadcastSender.give_up`."""
        self._publisher.sender.give_up(seat, reason)

    def share(self, version: int) -> dict[str, Any]:
        """Call `SharedDeviceSender.share`."""
        return self._publisher.sender.share(version)

    def chunk_count(self) -> int:
        """Count the chunks of the newest publication. Rank 0 only."""
        return self._publisher.chunk_count

    def chunk(self, index: int) -> Mapping[str, np.ndarray]:
        """Return chunk `index` of the newest publication. Rank 0 only."""
        return self._publisher.chunk(index)

    def retire(self, version: int) -> None:
        """Free the publication of `version`. Rank 0 only."""
        self._publisher.retire(version)

    def score(self, sequences: Sequence[AnySequence]) -> list[tuple[list[float], list[float]]]:
        with oom_hint(f"learner rank {self.rank}", LEARNER_MEMORY):
            return self._engine.policies.score(sequences)

    def close(self) -> None:
        """Remove publications and leave the process group."""
        if self._publisher is not None:
            self._publisher.close()
        super().close()

    def _canaries(self) -> list[Canary]:
        """Score the canary, and a rollout if there was an update: what engines must reproduce. Collective."""
        if self._canary is None:
            self._canary = self._engine.own_answer()
        canaries = []
        # One by one, so that equal weights give equal bits.
        for prompt, answer in [self._canary, *([self._fresh] if self._fresh is not None else [])]:
            # Engines score given tokens at temperature 1, whatever they sample at.
            ((scored, _),) = self._engine.policies.score([(prompt, answer)], temperature=1.0, with_reference=False)
            canaries.append(Canary((*prompt, *answer), tuple(scored)))
        return canaries


def rollout_of(items: Sequence[Pair] | Sequence[Game]) -> TokenSequence | None:
    """Return the longest of a batch's preferred completions, up to FRESH_TOKENS of it, and its prompt.

    None if it is short. Those that the policy unlearns have unlikely tokens, on which rounding is large. Without its
    last token: an engine samples one more, for which a rollout as long as the engine allows has no room.
    """
    preferred = [(item.prompt_token_ids, _preferred(item).token_ids[:-1][:FRESH_TOKENS]) for item in items]
    longest = max(preferred, key=lambda rollout: len(rollout[1]))
    return longest if longest[1] else None


def _preferred(item: Pair | Game) -> Completion:
    if isinstance(item, Pair):
        return item.chosen
    wins = [sum(row) for row in item.preferences[: len(item.players)]]
    return item.players[wins.index(max(wins))]
