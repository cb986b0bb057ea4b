"""The two sums that a ledger must keep: every prompt and every grant is somewhere, once.

offered = waiting + in flight + buffered + trained + dropped        (prompts)
leased  = in flight + buffered + trained + returned + dropped       (grants)
"""

from collections.abc import Mapping
from typing import Any


def imbalance(ledger: Mapping[str, Any]) -> str:
    """Return which of the two sums a ledger breaks, with its numbers; empty if both hold."""
    returned, dropped = sum(ledger["returned"].values()), sum(ledger["dropped"].values())
    settled = ledger["in_flight"] + ledger["buffered"] + ledger["trained"] + dropped
    broken = []
    if ledger["offered"] != settled + ledger["waiting"]:
        broken.append(f"{ledger['offered']} prompts offered, {settled + ledger['waiting']} accounted for")
    if ledger["leased"] != settled + returned:
        broken.append(f"{ledger['leased']} grants, {settled + returned} accounted for")
    return ", ".join(broken)
