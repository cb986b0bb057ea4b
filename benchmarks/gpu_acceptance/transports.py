"""Parts: a version by every transport from the learner to an engine, and a receiver that is killed meanwhile."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.errors import RunError, TransferInterruptedError, WeightMismatchError
from actors.records import Manifest, Seat
from benchmarks.gpu_acceptance.children import Child, ChildGoneError, gpu_environment
from benchmarks.gpu_acceptance.learners import TRANSFER_SECONDS, bring, engine_of, learner_of, random_pairs
from benchmarks.gpu_acceptance.parts import FailedError, Setup

MIB = 1 << 20
UPDATE_ROWS = 2


def transport(setup: Setup) -> Iterator[dict[str, Any]]:
    """Publish versions, of which the engine takes each; seconds are medians without the first, which makes the group.

    `publish` is what the learner's next update waits for; `transfer` ends when all bits are there and checked; `load`
    includes repacking.
    """
    rounds: list[dict[str, float]] = []
    with (
        engine_of(setup, gpu=1 if setup.part == "nccl" else 0) as engine,
        learner_of(setup, setup.part) as learner,
    ):
        engine.ready()
        yield {"engine": engine.hello}
        for version in range(1 + setup.rounds):
            if version:
                learner.update(random_pairs(setup, UPDATE_ROWS, version))
            began = time.perf_counter()
            manifest = learner.export(version)
            assert manifest is not None
            published = time.perf_counter() - began
            steps = {"publish": published} | bring(learner, engine, manifest)
            if engine.call("version") != version:
                raise FailedError(f"version {version} was published, and the engine uses another one")
            learner.retire(version - 1)
            rounds.append(steps)
            yield _medians(rounds[1:] or rounds, _bytes_of(manifest)) | {"versions": len(rounds)}
        yield {"wrong_bits": _with_wrong_bits(learner, engine, 1 + setup.rounds)}


def _with_wrong_bits(learner: Any, engine: Child, version: int) -> str:
    """Publish a version whose last tensor is not what the manifest says; the engine must go on with the last one."""
    manifest = learner.export(version)
    *others, last = manifest.tensors
    wrong = replace(manifest, tensors=(*others, replace(last, fingerprint="0" * len(last.fingerprint))))
    try:
        bring(learner, engine, wrong)
    except WeightMismatchError as refusal:
        if last.name not in str(refusal) or engine.call("version") != version - 1:
            raise FailedError(f"a tensor with wrong bits was refused as: {refusal}") from refusal
    else:
        raise FailedError(f"{last.name} arrived with other bits than the manifest says, and nobody noticed")
    finally:
        learner.retire(version)
    return "refused"


def _bytes_of(manifest: Manifest) -> int:
    from actors.generation.transfer_group import record_bytes

    return sum(record_bytes(record) for record in manifest.tensors)


def _medians(rounds: list[dict[str, float]], size: int) -> dict[str, Any]:
    medians: dict[str, Any] = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    if "transfer" in medians:
        medians["bytes_per_second"] = size / medians["transfer"]
    return medians | {"bytes": size}


# A receiver that is killed during a transfer.


class _Learner:
    """Rank 0, as far as broadcasts go; remembers when and why a transfer ended early."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self.interrupted: tuple[float, str] | None = None

    async def open_group(self, size: int, seconds: float) -> Seat:
        return self._sender.open_group(size, seconds)

    async def send(self, manifest: Manifest, seat: Seat) -> None:
        try:
            await asyncio.to_thread(self._sender.send, manifest, seat)
        except TransferInterruptedError as error:
            self.interrupted = time.monotonic(), str(error)
            raise

    async def give_up(self, seat: Seat, reason: str) -> None:
        await asyncio.to_thread(self._sender.give_up, seat, reason)


class _Generator:
    """A receiver that takes versions until it has one; with `fatal`, it is killed in the middle of the first."""

    def __init__(self, name: str, child: Child, *, fatal: bool = False) -> None:
        self.name, self.process = name, name
        self._child, self._fatal = child, fatal
        self.died: float | None = None
        self.finished: float | None = None

    async def check(self, manifest: Manifest) -> None: ...

    async def receive(self, manifest: Manifest, seat: Seat) -> int:
        return await asyncio.to_thread(self._receive, manifest, seat)

    def _receive(self, manifest: Manifest, seat: Seat) -> int:
        if self._fatal:
            self.died = self._child.call("die_during", manifest, seat)
            try:
                self._child.answer()
            except ChildGoneError:
                raise RunError(self.name) from None
        self.finished = self._child.call("fetch", manifest, [seat])
        return manifest.version

    async def take(self, broadcasts: Any, manifest: Manifest) -> None:
        while True:
            await broadcasts.turn(self, manifest)
            try:
                await broadcasts.taken(self)
            except TransferInterruptedError:
                continue
            return


def kill(setup: Setup) -> Iterator[dict[str, Any]]:
    """Kill one of three receivers with -9 when the first bucket is there; the others must still get the version.

    Over `gloo` between processes of this host: NCCL would need a GPU for each. `sender_held` counts from the kill.
    """
    from benchmarks.publication import random_publication

    environment = gpu_environment(0) if setup.cuda else None
    children = [Child("receiver", "gloo", False, environment=environment) for _ in range(3)]
    try:
        publisher, manifest = random_publication("gloo", Path(setup.scratch) / "published", setup.kill_mib * MIB)
        for child in children:
            child.ready()
        names = ("first", "second", "killed")
        generators = [_Generator(n, c, fatal=n == "killed") for n, c in zip(names, children, strict=True)]
        learner = _Learner(publisher.sender)
        asyncio.run(asyncio.wait_for(_transfer_to(generators, learner, manifest), 2 * TRANSFER_SECONDS))
        publisher.close()
    finally:
        for child in children:
            child.close()
    *others, victim = generators
    if victim.died is None or learner.interrupted is None:
        raise FailedError("the transfer ended before the receiver was killed; raise --kill-mib")
    ended, reason = learner.interrupted
    yield {
        "bytes": setup.kill_mib * MIB,
        "sender_held": ended - victim.died,
        "others_finished": max(each.finished or 0.0 for each in others) - victim.died,
        "others": sum(each.finished is not None for each in others),
        "reason": reason,
    }
    if not all(each.finished for each in others):
        raise FailedError("a receiver that was not killed has no version")


async def _transfer_to(generators: list[_Generator], learner: _Learner, manifest: Manifest) -> None:
    from launch.cluster.broadcasts import Broadcasts

    broadcasts = Broadcasts(learner, workers=1, seconds=TRANSFER_SECONDS)
    takes = [each.take(broadcasts, manifest) for each in generators]
    for each, outcome in zip(generators, await asyncio.gather(*takes, return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException) and each.died is None:
            raise outcome
