"""What the training loop needs of generators, judge and learner: the seams between a run and where its parts live.

`ray_ports.py` implements them with Ray actors; tests implement them in one process. Nothing here knows Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.records import Failure, Game, GeneratorStatus, Group, Lease, Manifest, Pair


class GeneratorUnavailableError(Exception):
    """The generator's process is gone and is being started again; everything it held is lost."""


class GeneratorDeadError(Exception):
    """The generator's process is gone and will not come back."""


class GeneratorPort(Protocol):
    """One generator. Every call may raise `GeneratorUnavailableError` or `GeneratorDeadError`."""

    name: str

    async def ready(self) -> None:
        """Returns once the engine answers."""

    async def submit(self, leases: Sequence[Lease]) -> None: ...

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        """Finished leases; waits for the first one up to the timeout."""

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        """Loads one publication between two engine steps; returns the version. Raises `WeightMismatchError`."""

    async def status(self) -> GeneratorStatus: ...

    def kill(self) -> None:
        """Ends its process at once; it is started again while restarts are left. Calls in progress raise."""


class JudgePort(Protocol):
    """The judge."""

    async def ready(self) -> None:
        """Returns once it answers; raises when it never will."""

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]: ...

    async def seconds(self) -> float: ...

    async def figures(self) -> dict[str, float]:
        """What it counted, by name."""


class LearnerPort(Protocol):
    """All ranks of the learner as one."""

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> Any:
        """One optimizer step on the whole batch; returns `learner.records.UpdateStats`.

        `measure_step`: also measure what the step did to the policy, which costs forward passes."""

    async def export(self, version: int) -> Publication: ...

    async def retire(self, version: int) -> None:
        """The publication is no longer needed."""

    async def score(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[list[float], list[float]]]:
        """Per-token log-probs (nats) of each (prompt, response) under policy and reference."""

    async def exact_table(self) -> Any:
        """Next-token log-probs [16, 259, 18] of the embedded world's policy (`learner.world.exact.ExactPolicy`)."""

    async def save(self, stage: Path) -> None: ...

    async def save_pretrained(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class Publication:
    """A manifest and, for transports that carry bytes in messages, what carries them."""

    manifest: Manifest
    chunks: Any = field(default=None)

    @property
    def version(self) -> int:
        return self.manifest.version
