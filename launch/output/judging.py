"""The account's line on the judge: its requests and failures, and how far to trust a language model's verdicts."""

from collections.abc import Mapping

from actors.foreign.text import many
from actors.judges.http.figures import frequent_abstentions, language_models


def judging_account(figures: Mapping[str, float]) -> str:
    """Describe a judge's requests, failures, abstentions and position bias; empty if there is nothing to say.

    Counters of an ensemble's members, `MEMBER.NAME`, are added up; their shares are listed for each member."""

    def total(name: str) -> float:
        return sum(value for key, value in figures.items() if key.rpartition(".")[2] == name)

    failed, cost = total("failed_groups"), total("cost")
    names = ("requests", "retries", "given_up", "refused", "abstentions")
    facts = [f"{failed:,.0f} of {many(round(total('groups')), 'group')} failed"] if failed else []
    facts += [f"{total(name):,.0f} {name.replace('_', ' ')}" for name in names if total(name)]
    facts += [f"cost {cost:,.2f}"] if cost else []
    trust = [
        f"; {prefix.replace('.', ': ')}{text}"
        for prefix in language_models(figures)
        for text in (frequent_abstentions(figures, prefix), _position_bias(figures, prefix))
        if text
    ]
    return ", ".join(facts) + "".join(trust)


def _position_bias(figures: Mapping[str, float], prefix: str) -> str:
    """Say how often the first place won, and how often the order decided; nothing without pairs."""
    first, low, high = (figures.get(f"{prefix}first_place_{name}") for name in ("share", "low", "high"))
    if first is None:
        return ""
    interval = "" if low is None or high is None else f" [{low:.0%}, {high:.0%}] (95% interval over groups)"
    changed = figures.get(f"{prefix}order_change_rate", 0.0)
    return f"the first place wins {first:.0%}{interval}, {changed:.0%} of the pairs change with the order"
