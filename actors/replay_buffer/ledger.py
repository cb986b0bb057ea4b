"""Check the two sums of a ledger: every prompt and every grant is counted exactly once.

offered = waiting + in flight + buffered + trained + dropped        (prompts)
leased  = in flight + buffered + trained + returned + dropped       (grants)
"""

from collections.abc import Mapping
from typing import Any


def imbalance(ledger: Mapping[str, Any]) -> str:
    """Return the sum that a ledger breaks, with its numbers; empty if both sums hold."""
    returned, dropped = sum(ledger["returned"].values()), sum(ledger["dropped"].values())
    settled = ledger["in_flight"] + ledger["buffered"] + ledger["trained"] + dropped
    broken = []
    if ledger["offered"] != settled + ledger["waiting"]:
        broken.append(f"{ledger['offered']} prompts offered, {settled + ledger['waiting']} accounted for")
    if ledger["leased"] != settled + returned:
        broken.append(f"{ledger['leased']} grants, {settled + returned} accounted for")
    return ", ".join(broken)
