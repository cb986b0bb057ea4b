"""Broadcasts over gloo between the learner's sender and receivers, in threads and processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.errors import TransferInterruptedError, WeightMismatchError
from actors.generation import transfer_group
from actors.generation.receivers import BroadcastReceiver
from actors.generation.transfer_group import bucket_bytes, buckets, views
from actors.records import Canary, Manifest, Seat, TensorRecord
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher

CPU = torch.device("cpu")


def some_tensors(shift: float = 0.0) -> dict[str, Tensor]:
    """Of every kind that a model holds; the largest travels alone and needs several writes to a socket."""
    generator = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(3000, 700, generator=generator) + shift,
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "transposed": torch.randn(4, 3, generator=generator).t() + shift,
        "scalar": torch.tensor(2.0 + shift),
        "flags": torch.tensor([True, False, True]),
        "ids": torch.arange(7),
    }


class Receivers:
    """A publisher and some receivers, each in a thread of its own."""

    def __init__(self, tmp_path: Path, count: int) -> None:
        self.publisher = Publisher(PublicationConfig(transport="gloo"), tmp_path)
        self.sender: Any = self.publisher.sender
        self.receivers = [BroadcastReceiver("gloo", CPU, worker=0) for _ in range(count)]
        self.threads = ThreadPoolExecutor()

    def publish(self, version: int, tensors: dict[str, Tensor]) -> Manifest:
        return self.publisher.publish(version, tensors, Canary((1, 2), (-0.5,)))

    def receive(self, number: int, manifest: Manifest, seat: Seat) -> Future[Any]:
        own = replace(seat, rank=number + 1)
        return self.threads.submit(lambda: dict(self.receivers[number].fetch(manifest, [own])))

    def send(self, manifest: Manifest, seat: Seat) -> Future[None]:
        return self.threads.submit(self.sender.send, manifest, seat)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], Receivers]]:
    made: list[Receivers] = []

    def of(count: int) -> Receivers:
        made.append(Receivers(tmp_path, count))
        return made[-1]

    yield of
    for each in made:
        each.publisher.close()
        each.threads.shutdown(wait=False)


def test_every_receiver_gets_every_bit_and_the_group_serves_the_next_version_too(make, monkeypatch) -> None:
    monkeypatch.setattr(transfer_group, "BUCKET_BYTES", 64)
    all_of = make(3)
    seat = all_of.sender.open_group(4, 60.0)
    for version in (1, 2):
        sent = some_tensors(shift=version)
        manifest = all_of.publish(version, sent)
        arriving = [all_of.receive(number, manifest, seat) for number in range(3)]
        all_of.send(manifest, seat).result(60)
        for each in arriving:
            arrived = each.result(60)
            assert list(arrived) == list(sent)
            for name, tensor in sent.items():
                assert arrived[name].dtype == tensor.dtype
                assert torch.equal(arrived[name], tensor)


def test_buckets_end_before_their_limit_and_gaps_keep_tensors_aligned(monkeypatch) -> None:
    monkeypatch.setattr(transfer_group, "BUCKET_BYTES", 48)
    shapes = {"a": (3,), "b": (5,), "c": (100,), "d": (1,)}  # of two bytes each: 6, 10, 200 and 2 bytes
    records = [TensorRecord(name, shape, "bfloat16", "") for name, shape in shapes.items()]
    parts = list(buckets(records))
    assert [[record.name for record in part] for part in parts] == [["a", "b"], ["c"], ["d"]]
    region = torch.zeros(bucket_bytes(parts[0]), dtype=torch.uint8)
    assert region.numel() == 32  # each is padded to a multiple of 16 bytes
    for name, tensor in views(region, parts[0]).items():
        tensor.copy_(torch.arange(shapes[name][0]))
    numbers = region.view(torch.bfloat16).tolist()
    assert numbers == [0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]


def test_changed_bits_are_refused_after_the_transfer_so_that_the_others_have_theirs(make) -> None:
    all_of = make(2)
    manifest = all_of.publish(1, some_tensors())
    *others, last = manifest.tensors
    wrong = replace(manifest, tensors=(*others, replace(last, fingerprint="0" * 32)))
    seat = all_of.sender.open_group(3, 60.0)
    refusing, well = all_of.receive(0, wrong, seat), all_of.receive(1, manifest, seat)
    all_of.send(manifest, seat).result(60)
    with pytest.raises(WeightMismatchError, match="'ids' arrived with other bits"):
        refusing.result(60)
    assert torch.equal(well.result(60)["ids"], torch.arange(7))


def test_a_member_that_never_comes_holds_nobody_longer_than_the_deadline(make) -> None:
    all_of = make(2)
    manifest = all_of.publish(1, some_tensors())
    seat = all_of.sender.open_group(3, 1.0)
    started = time.monotonic()
    waiting = [all_of.receive(0, manifest, seat), all_of.send(manifest, seat)]
    for each in waiting:
        with pytest.raises(TransferInterruptedError, match="longer than 1 s"):
            each.result(60)
    assert time.monotonic() - started < 20.0


def test_members_are_released_with_the_reason_when_a_transfer_is_given_up(make) -> None:
    all_of = make(2)
    manifest = all_of.publish(1, some_tensors())
    seat = all_of.sender.open_group(3, 60.0)
    waiting = [all_of.receive(0, manifest, seat), all_of.send(manifest, seat)]
    time.sleep(0.2)
    started = time.monotonic()
    all_of.sender.give_up(seat, "generator-1 failed: no memory")
    for each in waiting:
        with pytest.raises(TransferInterruptedError, match="generator-1 failed: no memory"):
            each.result(60)
    assert time.monotonic() - started < 20.0


def _receive_until(folder: str, manifest: Manifest, seat: Seat, what: str) -> None:
    """In a process: stop or die when the first bucket has arrived."""
    original = transfer_group.TransferGroup._wait_first

    def wait_first(group: Any) -> None:
        original(group)
        Path(folder, what).touch()
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()

    transfer_group.TransferGroup._wait_first = wait_first  # type: ignore[method-assign]
    Path(folder, "started").touch()
    BroadcastReceiver("gloo", CPU, worker=0).fetch(manifest, [seat])


@pytest.mark.parametrize(("what", "longest"), [("dies", 40.0), ("hangs", 40.0)])
def test_a_member_that_dies_or_hangs_in_the_middle_leaves_the_others_free_for_another_group(
    make, tmp_path, what, longest
) -> None:
    """The sender used to wait in its broadcast for ever, and with it every later publication."""
    all_of = make(2)
    manifest = all_of.publish(1, {f"w{i}": torch.randn(12 << 18) for i in range(6)})  # each larger than socket buffers
    seat = all_of.sender.open_group(4, 3.0)
    arguments = (str(tmp_path), manifest, replace(seat, rank=3), what)
    process = multiprocessing.get_context("spawn").Process(target=_receive_until, args=arguments)
    process.start()
    try:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        started = time.monotonic()
        waiting = [*(all_of.receive(number, manifest, seat) for number in range(2)), all_of.send(manifest, seat)]
        ended = [each.exception(60) for each in waiting]
        assert time.monotonic() - started < longest
        assert (tmp_path / what).exists()
        assert any(isinstance(each, TransferInterruptedError) for each in ended)
        assert all(each is None or isinstance(each, TransferInterruptedError) for each in ended)
        again = all_of.sender.open_group(3, 60.0)
        arriving = [all_of.receive(number, manifest, again) for number in range(2)]
        all_of.send(manifest, again).result(60)
        assert all(torch.equal(each.result(60)["w5"], arriving[0].result(60)["w5"]) for each in arriving)
    finally:
        process.kill()
        process.join()


def test_nccl_aborts_a_broadcast_that_never_ends_instead_of_waiting_for_it() -> None:
    """The communicator is a stand-in that blocks as NCCL does; no GPU is needed."""
    aborted = threading.Event()

    class Endless:
        def done(self) -> bool:
            return aborted.is_set()

    group = object.__new__(transfer_group.TransferGroup)
    group._backend = object.__new__(transfer_group._Nccl)
    group._backend._communicator = SimpleNamespace(destroy=aborted.set)
    group._works = deque([Endless()])
    group.close()
    assert aborted.wait(5)
