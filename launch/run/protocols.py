"""Interfaces of the training loop to generators, judges and learner, wherever these run.

`launch/cluster/ray_actors.py` implements them with Ray actors; tests implement them in one process. No Ray here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.records import Draw, Failure, Game, GeneratorStatus, Group, Lease, Manifest, Pair
from launch.settings.run import RunConfig
from learner.records import StageStats, UpdateStats


class GeneratorUnavailableError(Exception):
    """The generator's process died and is being restarted; everything it held is lost."""


class GeneratorDeadError(Exception):
    """The generator's process died and will not come back."""


class GeneratorPort(Protocol):
    """One generator. Every call may raise GeneratorUnavailableError or GeneratorDeadError."""

    name: str

    async def ready(self) -> None:
        """Wait until the engine answers."""

    async def submit(self, leases: Sequence[Lease]) -> None: ...

    async def withdraw(self, leases: Sequence[tuple[int, int]]) -> None:
        """Stop sampling leases, by index and attempt, and never answer them; ignore those that are not held."""

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        """Return finished leases; wait for the first one up to the timeout."""

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        """Load a publication between two engine steps; return the version.

        Raises WeightMismatchError if it is refused, TransferInterruptedError if another generator's failure ended the
        transfer."""

    async def status(self) -> GeneratorStatus: ...

    def kill(self) -> None:
        """Kill its process; it is restarted while restarts are left. Calls in progress raise."""


class JudgePort(Protocol):
    """A judge."""

    async def ready(self) -> None:
        """Wait until it answers; raise if it never will."""

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]: ...

    async def seconds(self) -> float: ...

    async def figures(self) -> dict[str, float]:
        """Return its counters by name."""


Rollout = tuple[Sequence[int], Sequence[int], Sequence[tuple[int, int]]]
"""Token ids of a prompt and a response, and the ranges of the response that an environment wrote."""


class ReferencePort(Protocol):
    """A reference actor."""

    async def ready(self) -> None:
        """Wait until it answers; raise if it never will."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]] | None:
        """Compute the reference's log-prob (nats) of each response token of one prompt's rollouts; 0 if it was given.

        None if the actor died over them several times."""

    async def seconds(self) -> float: ...


class RanksPort(Protocol):
    """All ranks that train one model, as one."""

    async def ready(self) -> None:
        """Wait until models are loaded and all ranks have met."""

    async def save(self, stage: Path) -> None: ...

    async def load(self, checkpoint: Path) -> Any: ...

    async def save_pretrained(self, directory: Path) -> None: ...

    async def close(self) -> None: ...

    def each(self) -> Sequence[Any]:
        """Return the ranks one by one, for the watchdog."""


class LearnerPort(RanksPort, Protocol):
    """All ranks of the learner as one."""

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on the whole batch.

        `measure_step`: also measure what the step did to the policy, which costs forward passes."""

    async def export(self, version: int) -> Publication: ...

    async def adopt_average(self) -> None:
        """Make the mean of the run's last weights the policy; nothing is trained after that."""

    async def retire(self, version: int) -> None:
        """Free a publication that nobody will take any more."""

    async def score(self, sequences: Sequence[Rollout]) -> list[tuple[list[float], list[float]]]:
        """Compute log-probs (nats) of each response's sampled tokens under policy and reference."""


class StagePort(RanksPort, Protocol):
    """All ranks of a stage as one."""

    async def advance(self, updates: int) -> list[StageStats]: ...

    async def evaluate(self) -> dict[str, float]: ...

    async def finish(self, directory: Path) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Publication:
    """A manifest, and how its weights get to a generator."""

    manifest: Manifest
    chunks: Any = field(default=None)
    """References to the parts of `object_store`, or a carrier with a method `take`; None for `shm`."""
    turn: Callable[[Any], Awaitable[None]] | None = None
    """Waits until a generator's transfer may begin; None: at once."""

    @property
    def version(self) -> int:
        return self.manifest.version

    async def tensors(self) -> dict[str, Any]:
        """Read the weights by name, as a generator receives them. Transports that are `readable` only."""
        from actors.generation.receivers import read

        return read(self.manifest, [await chunk for chunk in self.chunks or ()])


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Limits of a pool's requests to its generators."""

    max_running: int  # leases that one generator holds at a time
    take_seconds: float  # time for one generator to take one version
    lease_seconds: float
    draw: Draw = "all"  # completions that training leases ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvents:
    """Callbacks of a pool."""

    on_group: Callable[[Group], None]  # with each finished training group
    on_retire: Callable[[int], None]
    """Called with each version that no generator needs any more."""
    on_message: Callable[[str], None]


class PublicationObserver(Protocol):
    """One more receiver of publications, which measures the policy that they hold."""

    def due(self, update: int) -> bool:
        """Return whether to measure the policy published after `update` updates."""

    async def observe(self, update: int, publication: Publication) -> dict[str, float]:
        """Measure; return metrics of this update by name."""

    async def aside(self, publication: Publication) -> dict[str, float]:
        """Measure a policy that is not one of the run's updates."""


class RunPlugin:
    """Hooks for a run's surroundings. The defaults suit models and prompts from outside."""

    opponent_name = "the starting policy"  # what the policy is evaluated against

    def resolve(self, config: RunConfig) -> RunConfig:
        """Fill in settings that were left unset."""
        return config

    def check_model(self, config: RunConfig) -> bool:
        """Raise UsageError for models that cannot be used. Return False if they do not exist yet."""
        return True

    def tokenizer(self, config: RunConfig) -> Any:
        """Load the policy's tokenizer."""
        from actors.data.text import load_tokenizer
        from actors.hub import read_text_config

        read_text_config("model.path", config.model.path)  # what is wrong with it is no fault of a tokenizer
        return load_tokenizer(config.model.tokenizer or config.model.path, chats=config.model)

    def starting_policy(
        self, config: RunConfig, directory: Path, say: Callable[[str], None], on_all_cores: Callable[..., Any]
    ) -> str:
        """Return the model to start from. If it must be made, `on_all_cores` runs the function that makes it."""
        return config.model.path

    def observers(
        self, config: RunConfig, reference_dir: Path, say: Callable[[str], None]
    ) -> Sequence[PublicationObserver]:
        """Return the receivers that measure publications of this run."""
        return ()

    def fixed(self, config: RunConfig) -> dict[str, Any]:
        """Return further settings, by name, that a resumed run must share with the saved one."""
        return {}

    def summary(self, updates: int) -> dict[str, Any]:
        """Return further values for `summary.json` after `updates` updates."""
        return {}

    def scores(self) -> dict[str, float | None]:
        """Return further figures for the board; None: not measured yet."""
        return {}
