"""What travels to a function's process and back: equal in value and type."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import msgspec
import pytest

from actors.judges.functions import wire
from actors.records import Completion, Group, Judgement, Lease, Prompt

COMPLETION = Completion(
    (1, 2, 70_000), (-0.1, -1e-300, 0.0), (3, 3, 4), "text\n\x1b[0m\u2028é", False, True, ((1, 2),), (("user", "hi"),)
)
METADATA = {
    "columns": {
        "numbers": [0, -1, 2**63 - 1, -(2**63), 2**64, -(10**40), 0.1, True, None],
        "texts": ["é", "\ud800 alone", "", "\x00"],
        "bytes": b"\xff\x00",
        "tuple": (1, ("a", 10**30), [2.5]),
        "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        "with a zone": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        "date": datetime.date(2026, 1, 2),
        "time": datetime.time(3, 4, 5),
        "duration": datetime.timedelta(days=-3, microseconds=7),
        "decimal": decimal.Decimal("1.10"),
        "nested": {"a": [{"b": (datetime.date(2026, 1, 2),)}], 3: "a key that is no text"},
    },
    "messages": [{"role": "user", "content": "hi"}],
}


def travelled(group: Group) -> Group:
    framed = wire.request_frame(7, [group])
    assert int.from_bytes(framed[: wire.LENGTH_BYTES], "big") == len(framed) - wire.LENGTH_BYTES
    request = wire.read_request(framed[wire.LENGTH_BYTES :])
    assert request.number == 7
    return request.groups[0]


def typed(value: Any) -> Any:
    """The value with the type of each of its parts."""
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    return (type(value), [typed(each) for each in value]) if isinstance(value, list | tuple) else (type(value), value)


def test_groups_arrive_as_they_were_sent() -> None:
    prompt = Prompt("p:0", (5, 6), "2+2?", "4", METADATA)
    group = Group(Lease(-1, 2, prompt, 3, 1.5, "policy"), (COMPLETION, COMPLETION), Judgement((1.0, 2.0)))
    arrived = travelled(group)
    assert arrived == group
    assert typed(arrived.lease.prompt.metadata) == typed(METADATA)


def test_a_value_without_a_form_is_refused_with_its_type() -> None:
    prompt = Prompt("p:0", (5,), "2+2?", None, {"columns": {"thing": object()}})
    with pytest.raises(TypeError, match="object"):
        travelled(Group(Lease(0, 0, prompt, 0, 0.0), (COMPLETION,)))


def test_judgements_come_back_to_the_bit() -> None:
    judgement = Judgement((0.1, -5e-324, math.nextafter(1.0, 2.0)), ((0.5, 0.25), (0.75, 0.5)))
    answer = wire.read_answer(wire.frame(wire.Judged(3, [judgement]))[wire.LENGTH_BYTES :])
    assert answer == wire.Judged(3, [judgement])


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, msgspec.msgpack.encode({"type": "Judged", "number": "x"})])
def test_what_is_no_answer_is_refused(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.read_answer(content)
