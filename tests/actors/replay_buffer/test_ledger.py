"""A ledger's two sums."""

from __future__ import annotations

from actors.replay_buffer.ledger import imbalance


def test_a_ledger_that_lost_a_prompt_or_a_grant_says_how_many():
    ledger = {"offered": 10, "leased": 12, "trained": 4, "waiting": 1, "in_flight": 2, "buffered": 1}
    ledger |= {"returned": {"expired": 3}, "dropped": {"judge": 2}}
    assert imbalance(ledger) == ""
    assert imbalance(ledger | {"waiting": 0}) == "10 prompts offered, 9 accounted for"
    assert imbalance(ledger | {"returned": {}}) == "12 grants, 9 accounted for"
