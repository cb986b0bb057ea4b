"""Capacity of one driver: groups per second, and processor time per group, with simulated generators.

    python -m benchmarks.driver [--generators 10 100 1000] [--seconds 10] [--completions 4] [--tokens 128]

The loop, the generator pool, the replay buffer, the ledger, the journal and the checkpoint are those of a run, in one
process without Ray. Generators, the judge and the learner are simulated: they answer at once, or after the time that
their rate asks for, with groups that were made before the clock starts. So what is measured is the driver's own work.

- `flat out`: generators answer as soon as they hold leases; the driver's processor is the limit.
- `at a rate`: all generators together offer so many groups per second (`--rate`); how many arrive?
- `checkpoint`: the longest time that the event loop stood still while a checkpoint of a full buffer was written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.records import Canary, Completion, Failure, GeneratorStatus, Group, Judgement, Lease, Manifest, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from benchmarks import record
from launch.output.group_table import BUFFER_FILE, write_buffer
from launch.output.journal import Journal
from launch.run.loop import LoopEvents, TrainingLoop
from launch.run.protocols import Publication
from launch.settings.run import RunConfig

TICK_SECONDS = 0.01
"""Shortest time in which a simulated generator answers; a real one answers in seconds."""


@dataclass(frozen=True, slots=True)
class Size:
    """Completions of every group, and tokens of each completion."""

    completions: int
    tokens: int


class Prompts:
    """One prompt of 64 tokens at every position."""

    def prompt(self, position: int) -> Prompt:
        return Prompt(f"simulated:{position}", PROMPT, "a prompt")


PROMPT = tuple(range(100, 164))


class Generator:
    """Answers what it holds every tick: all of it, or as much as `rate` (groups per second) allows."""

    def __init__(self, name: str, size: Size, rate: float | None) -> None:
        self.name, self._rate = name, rate
        self._version, self._held, self._made = 0, list[Lease](), dict[int, tuple[Completion, ...]]()
        self._size, self._allowed, self._asked = size, 0.0, time.monotonic()
        self._arrived = asyncio.Event()

    async def ready(self) -> None: ...

    def kill(self) -> None:
        raise RuntimeError(f"{self.name} was killed")

    async def submit(self, leases: Sequence[Lease]) -> None:
        self._held.extend(leases)
        self._arrived.set()

    async def withdraw(self, leases: Sequence[tuple[int, int]]) -> None:
        self._held = [lease for lease in self._held if (lease.index, lease.attempt) not in leases]

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        if not self._held:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        await asyncio.sleep(TICK_SECONDS if self._rate is None else max(TICK_SECONDS, 1.0 / self._rate))
        now = time.monotonic()
        able = [lease for lease in self._held if lease.min_version <= self._version]
        if self._rate is not None:
            self._allowed = min(self._allowed + self._rate * (now - self._asked), float(len(able)))
            able = able[: int(self._allowed)]
            self._allowed -= len(able)
        self._asked = now
        answered = {lease.index for lease in able}
        self._held = [lease for lease in self._held if lease.index not in answered]
        return [Group(lease, self._completions()) for lease in able]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        self._version = manifest.version
        return manifest.version

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(self.name, self._version, 0, len(self._held), 0, 0.0, 0.0, 0.0, process="0")

    def _completions(self) -> tuple[Completion, ...]:
        if self._version not in self._made:
            tokens, logprobs = tuple(range(self._size.tokens)), (-1.25,) * self._size.tokens
            versions = (self._version,) * self._size.tokens
            one = Completion(tokens, logprobs, versions, "x" * (4 * self._size.tokens), finished=True)
            self._made = {self._version: (one,) * self._size.completions}
        return self._made[self._version]


class Judge:
    """Scores without looking."""

    async def ready(self) -> None: ...

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        return [replace(each, judgement=Judgement(tuple(map(float, range(len(each.completions)))))) for each in groups]

    async def seconds(self) -> float:
        return 0.0

    async def figures(self) -> dict[str, float]:
        return {}


@dataclass
class Stats:
    """Statistics of an update that did not happen."""

    loss: float = 0.5
    lr: float = 1e-3
    grad_norm: float = 1.0
    skipped: bool = False
    log_ratio_max: float = 0.0
    step_size: float | None = None
    metrics: Any = None


class Learner:
    """Takes no time."""

    async def update(self, items: Sequence[Any], measure_step: bool = False) -> Any:
        await asyncio.sleep(0)
        return Stats()

    async def export(self, version: int) -> Publication:
        return Publication(Manifest(version, (), Canary((), ()), "shm"))

    async def retire(self, version: int) -> None: ...


def configuration(directory: Path, generators: int, settings: dict[str, Any]) -> RunConfig:
    """Two prompts in flight for each generator, staleness of two versions."""
    document = {
        "model": {"path": "unused"},
        "output": str(directory),
        "updates": 1_000_000,
        "generators": {"count": generators, "max_running_prompts": 8},
        "replay": {"prompts_per_update": max(32, 2 * generators), "max_staleness": 2},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 0},
        **settings,
    }
    return RunConfig.model_validate(document)


class Trial:
    """One loop over simulated parts, with a real journal below `directory`."""

    def __init__(self, directory: Path, generators: int, size: Size, rate: float | None) -> None:
        self.config = configuration(directory / "run", generators, {})
        self.buffer = ReplayBuffer(self.config.replay, Prompts(), self.config.updates)
        self.journal = Journal(directory / "journal", self.config, print)
        each = None if rate is None else rate / generators
        self._made = [Generator(f"generator-{number}", size, each) for number in range(generators)]

    def loop(self) -> TrainingLoop:
        async def none(*_: Any) -> None: ...

        async def keep(batch: Any) -> None:
            await asyncio.to_thread(self.journal.add, batch)

        events = LoopEvents(
            on_update=lambda progress, values: None,
            on_watch=lambda loop: None,
            on_checkpoint=none,
            on_message=print,
            on_batch=keep,
        )
        parts: Any = {"generators": self._made, "judge": Judge(), "learner": Learner()}
        return TrainingLoop(self.config, buffer=self.buffer, events=events, **parts)

    def run(self, seconds: float) -> dict[str, float]:
        """Run for `seconds`, after a tenth of it that does not count; return rates, with the journal's last file."""
        marks: list[tuple[float, float, int]] = []

        def mark() -> None:
            marks.append((time.perf_counter(), time.process_time(), self.buffer.ledger()["trained"]))

        async def main(loop: TrainingLoop) -> None:
            await loop.publish()
            training = asyncio.ensure_future(loop.learn())
            await asyncio.sleep(0.1 * seconds)
            mark()
            await asyncio.sleep(seconds)
            loop.stop()
            await training
            self.journal.flush()
            mark()

        asyncio.run(self.loop().run(main))
        (began, used, before), (ended, used_then, after) = marks
        groups = after - before
        return {
            "groups_per_second": groups / (ended - began),
            "cpu_ms_per_group": 1e3 * (used_then - used) / max(1, groups),
            "busy": (used_then - used) / (ended - began),
        }


def checkpoint(directory: Path, size: Size, groups: int) -> dict[str, float]:
    """Fill a buffer with `groups` groups and write it as a checkpoint does; return seconds and bytes."""
    replay = {"prompts_per_update": groups // 3, "max_staleness": 2}
    config = configuration(directory / "run", 1, {"replay": replay})
    buffer = ReplayBuffer(config.replay, Prompts(), config.updates)
    for lease in buffer.lease(groups, 0.0):
        tokens = tuple(range(size.tokens))
        one = Completion(tokens, (-1.25,) * size.tokens, (0,) * size.tokens, "x" * (4 * size.tokens), finished=True)
        buffer.generated(lease.index, lease.attempt)
        judgement = Judgement(tuple(map(float, range(size.completions))))
        buffer.add(Group(lease, (one,) * size.completions, judgement))
    longest = 0.0

    async def save() -> float:
        """Save a checkpoint as a run does; return its seconds."""
        began = time.perf_counter()
        state = buffer.state_dict()
        held = state.pop("groups")
        await asyncio.to_thread(write_buffer, directory / BUFFER_FILE, held)
        (directory / "state.json").write_text(json.dumps(state))
        return time.perf_counter() - began

    async def watched() -> float:
        nonlocal longest
        saving = asyncio.ensure_future(save())
        while not saving.done():
            looked = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - looked)
        return await saving

    seconds = asyncio.run(watched())
    nbytes = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    return {"groups": float(buffer.buffered), "seconds": seconds, "stopped_seconds": longest, "bytes": float(nbytes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", type=int, nargs="+", default=[10, 100, 1000, 2000])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2000.0, help="groups per second offered by all generators")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/driver.json"))
    arguments = parser.parse_args()
    size = Size(arguments.completions, arguments.tokens)
    trials = []
    for generators in arguments.generators:
        for rate in (None, arguments.rate):
            with tempfile.TemporaryDirectory() as directory:
                measured = Trial(Path(directory), generators, size, rate).run(arguments.seconds)
            trials.append({"generators": generators, "rate": rate, **measured})
            print(json.dumps(trials[-1]))
    with tempfile.TemporaryDirectory() as directory:
        saved = checkpoint(Path(directory), size, 3072)
    print(json.dumps(saved))
    result = {"completions": size.completions, "tokens": size.tokens, "trials": trials, "checkpoint": saved}
    record.write(arguments.output, {**result, "machine": record.machine()})


if __name__ == "__main__":
    main()
