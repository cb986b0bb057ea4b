"""Where ranks meet: each in a thread of this process, and what the first one listens on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from actors.host import free_port
from learner.backend.collective import MEETING
from learner.publication.senders import BroadcastSender
from tests.listening import Listener, listeners_of

MINUTE = timedelta(seconds=60)


def opened(before: set[Listener]) -> set[tuple[str, int]]:
    return {(each.host, each.port) for each in {*listeners_of(psutil.Process())} - before}


@pytest.fixture
def before() -> set[Listener]:
    return {*listeners_of(psutil.Process())}


def meet() -> tuple[dist.Store, int, int]:
    """As `init_process_group` asks for the store; it does so lazily, so the environment is read here."""
    places: Iterator[tuple[dist.Store, int, int]] = dist.rendezvous(MEETING, timeout=MINUTE)
    return next(places)


def test_the_ranks_meet_at_the_address_that_they_are_given_and_listen_there_alone(before, monkeypatch) -> None:
    """127.0.0.2 is an address like any other node's: torch's own server would listen on all of them."""
    port = free_port("127.0.0.2")
    for name, value in {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(port), "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    store, rank, size = meet()
    assert (rank, size) == (0, 1)
    assert opened(before) == {("127.0.0.2", port)}
    store.set("word", "given")

    monkeypatch.setenv("RANK", "1")
    other, rank, size = meet()
    assert (rank, size) == (1, 1)
    assert other.get("word") == b"given"
    assert opened(before) == {("127.0.0.2", port)}


def test_a_process_alone_listens_on_loopback(before, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    store, rank, size = meet()
    assert (rank, size) == (0, 1)
    ((host, port),) = opened(before)
    assert (host, port) == ("127.0.0.1", store.port)


def test_weight_sync_meets_at_the_learner_s_address_alone(before, monkeypatch) -> None:
    import torch

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.2")
    sender = BroadcastSender("gloo", torch.device("cpu"))
    seat = sender.open_group(2, 5.0)
    assert seat.address == "127.0.0.2"
    assert opened(before) == {("127.0.0.2", seat.port)}
    assert sender.open_group(3, 5.0).port == seat.port
    sender.close()
    assert opened(before) == set()
