"""In-process stand-ins for prompts, generators and engines, and the groups of completions that they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.errors import UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.records import (
    Completion,
    Failure,
    GeneratorStatus,
    Group,
    Judgement,
    Lease,
    Manifest,
    Prompt,
    Pulse,
)
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError


class FakePrompts:
    """Prompt `i` at position `i`."""

    def prompt(self, position: int) -> Prompt:
        return Prompt(f"fake:{position}", (1, 2, 3), f"prompt {position}")


class FakeGenerator:
    """A generator in this process: answers what it holds every `seconds`, at its current version.

    A group has two completions of the policy, or `players`. With `opponents`, as many of these too, where a lease asks
    for them.
    """

    vital = False

    def __init__(
        self,
        name: str,
        *,
        seconds: float = 0.001,
        players: int = 2,
        opponents: int = 0,
        die_after: int | None = None,
        dead_for_good: bool = False,
    ) -> None:
        self.name = name
        self.answered: list[Lease] = []
        self.withdrawn: list[tuple[int, int]] = []
        self.version = 0
        self.loads: list[int] = []
        self.deaths = 0
        self.loads_at_death: int | None = None
        self._held: list[Lease] = []
        self._seconds = seconds
        self._players = players
        self._opponents = opponents
        self._die_after = die_after
        self._dead_for_good = dead_for_good

    async def pulse(self) -> Pulse:
        return Pulse("a host", 0)

    def kill(self) -> None: ...

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def submit(self, leases: Sequence[Lease]) -> None:
        self._held.extend(leases)

    async def withdraw(self, leases: Sequence[tuple[int, int]]) -> None:
        self.withdrawn += leases
        self._held = [lease for lease in self._held if (lease.index, lease.attempt) not in leases]

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        await asyncio.sleep(self._seconds)
        if self._die_after is not None and len(self.answered) >= self._die_after:
            self._die_after, self._held, self.version = None, [], 0
            self.deaths, self.loads_at_death = self.deaths + 1, len(self.loads)
            raise (GeneratorDeadError if self._dead_for_good else GeneratorUnavailableError)(self.name)
        startable = [lease for lease in self._held if lease.min_version <= self.version]
        self._held = [lease for lease in self._held if lease.min_version > self.version]
        self.answered += startable
        return [Group(lease, self._completions(lease)) for lease in startable]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        await asyncio.sleep(0.001)
        self.version = manifest.version
        self.loads.append(manifest.version)
        return manifest.version

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(self.name, self.version, 0, len(self._held), 0, 0.0, 0.0, 0.0, process="0")

    def _completions(self, lease: Lease) -> tuple[Completion, ...]:
        players = 0 if lease.draw == "opponents" else self._players
        opponents = 0 if lease.draw == "policy" else self._opponents
        versions = (self.version, self.version)
        return tuple(
            Completion((5 + k, 2), (-1.0, -0.5), versions, "x" * k, finished=True, opponent=opponent)
            for opponent, count in ((False, players), (True, opponents))
            for k in range(count)
        )


def group_of(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """An unjudged group with one completion for each tuple of token versions."""
    completions = tuple(
        Completion(tuple(range(len(each))), tuple(-0.1 * (i + 1) for i in range(len(each))), each, "", finished=True)
        for each in versions
    )
    return Group(lease, completions)


def judged_group(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """`group_of`, with the scores 0, 1, 2, ..."""
    return replace(group_of(lease, *versions), judgement=Judgement(tuple(float(i) for i in range(len(versions)))))


def spec_of(
    model_dir: Any = "unused",
    generators: GeneratorConfig | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Any,
) -> GeneratorSpec:
    """A generator with default settings, but those given."""
    generators, sampling = generators or GeneratorConfig(), sampling or SamplingConfig()
    return GeneratorSpec(model_dir=model_dir, generators=generators, sampling=sampling, **settings)


class FakeEngine:
    """`Engine` without a model: every request finishes after `steps` steps with that many tokens.

    Tests set `break_next_step` or `refuse_next_load` to an exception; `load` of version 13 breaks the engine for good.
    """

    def __init__(self, *_: Any, steps: int = 3, **__: Any) -> None:
        self.version = 0
        self.gap: float | None = None
        self.failure: Any = None
        self.break_next_step: Exception | None = None
        self.refuse_next_load: Exception | None = None
        self.aborted: list[str] = []
        self.seeds: dict[str, int | None] = {}
        self._steps = steps
        self._versions: dict[str, list[int]] = {}
        self._opponents: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._versions)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        opponent: bool = False,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.seeds[request_id] = seed
        if not prompt_token_ids:
            raise UsageError("empty prompt")
        self._versions[request_id] = []
        self._opponents |= {request_id} if opponent else set()

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted.extend(request_ids)
        for request_id in request_ids:
            self._versions.pop(request_id, None)

    def step(self) -> list[tuple[str, Completion]]:
        time.sleep(0.001)
        if self.break_next_step is not None:
            raise self.break_next_step
        for versions in self._versions.values():
            versions.append(self.version)
        done = {name: v for name, v in self._versions.items() if len(v) == self._steps}
        self._versions = {name: v for name, v in self._versions.items() if name not in done}
        return [
            (name, Completion((7,) * len(v), (-1.0,) * len(v), tuple(v), name, True, name in self._opponents))
            for name, v in done.items()
        ]

    def connect(self, init_info: dict[str, Any]) -> None: ...

    def load(self, manifest: Manifest, payload: Any = None) -> None:
        time.sleep(0.002)
        if self.refuse_next_load is not None:
            refusal, self.refuse_next_load = self.refuse_next_load, None
            raise refusal
        if manifest.version == 13:
            self.failure = WeightMismatchError("canary differs")
            raise self.failure
        self.version = manifest.version


def make_group(
    texts: Sequence[str],
    *,
    index: int = 0,
    answer: str | None = None,
    finished: Sequence[bool] | None = None,
    judgement: Judgement | None = None,
) -> Group:
    """A group whose completion `i` says `texts[i]` in token ids (10 + i, 2), all finished unless told otherwise."""
    ends = finished or [True] * len(texts)
    completions = tuple(
        Completion((10 + i, 2), (-1.0, -0.5), (0, 0), text, end)
        for i, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    prompt = Prompt(f"fake:{index}", (1, 3), f"prompt {index}", answer=answer)
    return Group(Lease(index, 0, prompt, 0, 60.0), completions, judgement)
